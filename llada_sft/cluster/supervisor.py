"""What stands around the ranks of an attempt, on the node of rank 0: it begins and ends them.

    python -m llada_sft.cluster.supervisor begin RUN_DIR             before srun
    python -m llada_sft.cluster.supervisor end RUN_DIR EXIT_CODE     after it, with srun's exit code

`begin` closes an attempt before it that ended without a word, and notes the new one. `end` says why
the attempt ended, if rank 0 has not, and restarts the job or not; its exit code is the job's:

    0   finished, or stopped as asked        2    a user's mistake
    1   a failure                            70   the restart budget is used up
                                             71   a hang

`--local` calls the same functions; a local run is never restarted. Only light modules here: it runs
before and after each attempt, and inside the seconds that SLURM leaves to a job that it has ended.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llada_sft.cluster import failures, journal, restarts, slurm, suspects
from llada_sft.cluster.causes import GIVEN_UP_EXIT_CODE, Cause
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.judge import Death, Evidence, Verdict, judge, read_srun
from llada_sft.cluster.restarts import Decision
from llada_sft.entry import exit_code
from llada_sft.errors import EXIT_CODE, LaunchError
from llada_sft.run_dir import RunDir

USAGE = "usage: python -m llada_sft.cluster.supervisor begin RUN_DIR | end RUN_DIR EXIT_CODE"
# What a job of SLURM's that is over says of itself.
_CAUSE_OF_STATE = {
    "CANCELLED": Cause.CANCELLED,
    "TIMEOUT": Cause.TIME_LIMIT,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
}


@dataclass(frozen=True)
class Job:
    """The SLURM job around an attempt.

    Attributes:
        restarts: How often SLURM has restarted it.
        nodes: Its nodes, as SLURM writes them: "node[1-2]".
    """

    job_id: str
    restarts: int
    nodes: str
    world_size: int

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Job":
        """Read it from the variables of a batch script.

        Raises:
            LaunchError: this is none.
        """
        try:
            return Job(
                environment["SLURM_JOB_ID"],
                int(environment.get("SLURM_RESTART_COUNT") or 0),
                environment["SLURM_JOB_NODELIST"],
                int(environment["SLURM_JOB_NUM_NODES"]) * int(environment["SLURM_NTASKS_PER_NODE"]),
            )
        except KeyError as error:
            name = error.args[0]
            raise LaunchError(f"{name} is not set: this belongs into a SLURM job") from None


def begin(run: RunDir, job: Job | None, world_size: int) -> int:
    """Close the attempt before, if it is open, and note the new one.

    Args:
        run: The run directory.
        job: None for a local run.
        world_size: The ranks that are about to start.

    Returns:
        0, or 70 if the job was given up.
    """
    _close_last(run, job)
    if job and (why := restarts.given_up(journal.read(run.journal), job.job_id)):
        print(f"given up: {why}\nto go on:  llada-sft resume {run.path}", flush=True)
        return GIVEN_UP_EXIT_CODE
    failures.clear(run)
    entry: Entry = {"event": "started", "attempt": journal.next_attempt(run.journal)}
    if job:
        entry |= {"job_id": job.job_id, "nodes": job.nodes, "restarts": job.restarts}
    journal.append(run.journal, {**entry, "world_size": world_size})
    return 0


def end(run: RunDir, job: Job, srun_code: int) -> int:
    """Say why a job's ranks have ended, and restart the job or not.

    Args:
        run: The run directory.
        job: The job.
        srun_code: srun's exit code.

    Returns:
        The job's exit code.
    """
    started = _open_attempt(run)
    if started is None:
        # Rank 0 has said why, and has requeued the job if it was to be.
        return srun_code
    fields = _fields(job.job_id)
    verdict = judge(_of_srun(run, job, started, fields, srun_code))
    decision = _write(run, started, verdict)
    if not decision.restart:
        return decision.exit_code
    try:
        if not _is_requeued(fields, job.restarts):
            slurm.requeue(job.job_id)
    except LaunchError as error:
        _warn(run, started, f"not restarted: {error}")
        return decision.exit_code
    if verdict.suspect and verdict.node:
        suspects.leave_out(run, started, job.job_id, verdict, len(slurm.hostnames(job.nodes)))
    return decision.exit_code


def end_local(run: RunDir, deaths: Sequence[Death], told: bool) -> Verdict | None:
    """Say why the ranks of a local run have ended; None if rank 0 has said it.

    Args:
        run: The run directory.
        deaths: The ranks that failed.
        told: The run had been told to stop.
    """
    started = _open_attempt(run)
    if started is None:
        return None
    evidence = Evidence(
        exit_code=1 if deaths else 0,
        failures=failures.read_all(run),
        deaths=deaths,
        world_size=started.get("world_size", 1),
        stopped=Cause.CANCELLED if told else None,
    )
    verdict = judge(evidence)
    _write(run, started, verdict)
    return verdict


def _close_last(run: RunDir, job: Job | None) -> None:
    """Judge an attempt that nobody saw end: its batch script was killed, or its node lost."""
    started = _open_attempt(run)
    if started is None:
        return
    own = started.get("job_id")
    if own is None or (job and job.job_id != own):
        # The run was started anew by hand: only what SLURM still knows tells what happened.
        state = None if own is None else _fields(own).get("JobState", "")
        stopped = _CAUSE_OF_STATE.get(state or "")
        evidence = Evidence(failures=failures.read_all(run), stopped=stopped)
    else:
        assert job
        evidence = _of_srun(run, job, started, {}, None)
    _write(run, started, judge(evidence))


def _open_attempt(run: RunDir) -> Entry | None:
    """Give the `started` entry of the last attempt, if no `ended` follows it."""
    entries = journal.read(run.journal)
    started = [entry for entry in entries if entry.get("event") == "started"]
    ended = {entry.get("attempt") for entry in entries if entry.get("event") == "ended"}
    return started[-1] if started and started[-1].get("attempt") not in ended else None


def _of_srun(
    run: RunDir, job: Job, started: Entry, fields: Mapping[str, str], srun_code: int | None
) -> Evidence:
    """Collect what an attempt of this job has left."""
    messages = run.srun_log(job.job_id, started.get("restarts", 0))
    text = messages.read_text(encoding="utf-8", errors="replace") if messages.exists() else ""
    deaths, lost = read_srun(text)
    nodes: list[str] = []
    with suppress(LaunchError):
        nodes = slurm.hostnames(started.get("nodes", ""))
        lost = lost or slurm.lost_nodes(started.get("nodes", ""))
    return Evidence(
        srun_code,
        failures.read_all(run),
        deaths,
        lost,
        nodes,
        started.get("world_size", 1),
        _stopped(run, started, job, fields),
    )


def _stopped(run: RunDir, started: Entry, job: Job, fields: Mapping[str, str]) -> Cause | None:
    """Tell what SLURM did to the job, from its state and from the signals that ranks noted."""
    if _is_requeued(fields, started.get("restarts", 0)) or job.restarts > started.get(
        "restarts", 0
    ):
        return _cause_of_signal(run, started) or Cause.REQUEUED
    if fields.get("JobState", "RUNNING") == "RUNNING":
        return None
    return Cause.TIME_LIMIT if fields.get("Reason") == "TimeLimit" else Cause.CANCELLED


def _cause_of_signal(run: RunDir, started: Entry) -> Cause | None:
    words = [
        entry.get("cause")
        for entry in journal.read(run.journal)
        if entry.get("event") == "signal" and entry.get("attempt") == started.get("attempt")
    ]
    return next((Cause(word) for word in words if word in restarts.STOPS), None)


def _is_requeued(fields: Mapping[str, str], restarts_before: int) -> bool:
    """Has SLURM put the job back into the queue already (a lost node, an operator's requeue)?"""
    return int(fields.get("Restarts") or 0) > restarts_before


def _fields(job_id: str) -> dict[str, str]:
    try:
        return slurm.job_fields(job_id)
    except LaunchError:
        return {}


def _write(run: RunDir, started: Entry, verdict: Verdict) -> Decision:
    """Note the verdict and what follows from it, and print both to the job's log."""
    base: Entry = {"attempt": started.get("attempt", 0)}
    if "job_id" in started:
        base["job_id"] = started["job_id"]
    if verdict.cause not in restarts.STOPS and verdict.cause != Cause.FINISHED:
        journal.append(run.journal, {"event": "failed", **base, **_of_rank(verdict)})
    code = restarts.exit_code(verdict.cause)
    ended: Entry = {"event": "ended", **base, "cause": verdict.cause, "exit_code": code}
    if verdict.step is not None:
        ended["step"] = verdict.step
    if verdict.error:
        ended["detail"] = verdict.error
    journal.append(run.journal, ended)
    if "job_id" not in started:
        return Decision(restart=False, exit_code=code)
    print(f"the attempt ended: {verdict.cause}: {verdict.error}", flush=True)
    decision = _decide(run)
    if decision.given_up:
        journal.append(run.journal, {"event": "given_up", **base, "detail": decision.given_up})
        print(f"given up: {decision.given_up}", flush=True)
    return decision


def _of_rank(verdict: Verdict) -> Entry:
    entry: Entry = {"cause": verdict.cause, "error": verdict.error}
    if verdict.rank is not None:
        entry["rank"] = verdict.rank
    if verdict.node:
        entry["node"] = verdict.node
    if verdict.step is not None:
        entry["step"] = verdict.step
    if verdict.traceback:
        entry["traceback"] = verdict.traceback
    return entry


def _decide(run: RunDir) -> Decision:
    # Here, not above: after an attempt without a failure nobody needs the config.
    from llada_sft.config import load_config

    return restarts.decide(journal.read(run.journal), load_config(run.config))


def _warn(run: RunDir, started: Entry, detail: str) -> None:
    print(detail, flush=True)
    attempt = started.get("attempt", 0)
    journal.append(run.journal, {"event": "warning", "attempt": attempt, "detail": detail})


def _ignore_signals() -> None:
    # scontrol requeue sends TERM to the batch script too, and kills it KillWait seconds later.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str]) -> int:
    """Do what a batch script asks for, and give the exit code."""
    _ignore_signals()
    match arguments:
        case ["begin", path]:
            job = Job.of(os.environ)
            return begin(RunDir(Path(path)), job, job.world_size)
        case ["end", path, code] if code.isdecimal():
            return end(RunDir(Path(path)), Job.of(os.environ), int(code))
    print(USAGE, file=sys.stderr)
    return EXIT_CODE


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
