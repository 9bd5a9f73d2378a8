"""What runs before and after the ranks of an attempt, on the node of rank 0.

`begin` runs before srun: it closes an earlier attempt whose end nobody recorded, and records the
start of the new one. `end` runs after srun: it records why the attempt ended, unless rank 0 has,
and decides whether the job runs again. Its exit code is the job's:

    0   finished, or stopped as asked        2    a user's mistake
    1   a failure                            70   the restart budget is used up
                                             71   a hang

`--local` and `--here` call the same functions; their runs are never restarted. Only light modules
here: it runs before and after each attempt, and inside the seconds that SLURM leaves to a job that
it has ended.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llada_sft.cluster import failures, history, job_states, journal, restart_policy, slurm
from llada_sft.cluster.attempt import evidence, exclude_nodes, requeue
from llada_sft.cluster.attempt.evidence import BatchJob, SrunEnd
from llada_sft.cluster.attempt.verdict import Death, Evidence, Verdict, judge
from llada_sft.cluster.causes import GIVEN_UP_EXIT_CODE, Cause
from llada_sft.cluster.door import OLDER_LAUNCHER
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.history import Attempt
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.owner.claim import claim
from llada_sft.cluster.owner.ownership import give_up, held, job_owner, of_job
from llada_sft.cluster.rank import phases, stopping
from llada_sft.cluster.restart_policy import Decision
from llada_sft.errors import EXIT_CODE, LaunchError
from llada_sft.run_dir import RunDir


def begin(
    run: RunDir,
    job: BatchJob | None,
    world_size: int,
    nodes: str = "",
    more: Entry | None = None,
) -> int:
    """Close the previous attempt, if it is open, and record the start of the new one.

    Args:
        run: The run directory.
        job: None for a local run.
        world_size: The ranks that are about to start.
        nodes: Those of a run without a job of its own, as SLURM writes them.
        more: What else the entry of the start has.

    Returns:
        0, or 70 if the job was given up.

    Raises:
        LaunchError: Somebody else owns the run: who, in one line.
    """
    ownership = claim(run, job_owner(job.job_id, job.restarts)) if job else held(run.path)
    _close_last(run, job)
    if job and (why := history.read(run.journal).why_given_up(job.job_id)):
        print(f"given up: {why}\nto resume:  {run.shell_command('resume')}", flush=True)
        if ownership:
            give_up(ownership)
        return GIVEN_UP_EXIT_CODE
    failures.clear(run)
    phases.clear_phases(run)
    number = history.read(run.journal).next_number
    entry: Entry = {"event": "started", "attempt": number, **(more or Entry())}
    if job:
        entry |= {"job_id": job.job_id, "nodes": job.nodes, "restarts": job.restarts}
    elif nodes:
        entry["nodes"] = nodes
    journal.append(run.journal, {**entry, "world_size": world_size})
    return 0


def set_up(run: RunDir, log: Path) -> tuple[int, str]:
    """Run the run's setup.sh; where that fails, the attempt ends with it.

    Args:
        run: The run directory.
        log: The file for the output of setup.sh.

    Returns:
        The exit code of the job, 0 if it is to continue, and what setup.sh changes, as lines for
        bash.
    """
    from llada_sft.cluster.attempt.setup_script import run_setup

    try:
        return 0, run_setup(run, log)
    except LaunchError as error:
        node = os.environ.get("SLURMD_NODENAME", "")
        failures.write(run, Failure(0, node, Cause.MISTAKE, str(error), time=time.time()))
    # The journal cannot be written where it does not know of this attempt.
    attempt = history.read(run.journal).open or Attempt(0, [Entry()], step_before=0)
    decision = _write(run, attempt, judge(Evidence(failures=failures.read_all(run))))
    # A mistake is never restarted, and there is no `end`.
    if ownership := held(run.path):
        give_up(ownership)
    return decision.exit_code, ""


def note_signal(run: RunDir, job: BatchJob, name: str) -> None:
    """Record why SLURM sent a signal before any rank ran: the script may be killed next."""
    entry: Entry = {"event": "signal", "attempt": history.read(run.journal).current_number}
    entry |= {"job_id": job.job_id, "signals": [name], "detail": "the batch script"}
    signalled = stopping.RankJob(job.job_id, job.restarts, signal_lead_s=0)
    if cause := stopping.before_save([name], signalled):
        entry["cause"] = cause
    journal.append(run.journal, entry)


def end(run: RunDir, job: BatchJob, srun_code: int) -> int:
    """Record why a job's ranks have ended, and restart the job or not.

    Args:
        run: The run directory.
        job: The job.
        srun_code: srun's exit code.

    Returns:
        The job's exit code.

    Raises:
        SupersededError: The run is not this job's any more.
    """
    ownership = of_job(run, job.job_id, job.restarts)
    code, over = _end(run, job, srun_code)
    if over and ownership:
        give_up(ownership)
    return code


def _end(run: RunDir, job: BatchJob, srun_code: int) -> tuple[int, bool]:
    """End an attempt; return the job's exit code, and whether the run is free for others."""
    known = history.read(run.journal)
    attempt = known.open
    if attempt is None or (attempt.job_id, attempt.restarts) != (job.job_id, job.restarts):
        # Rank 0 has recorded why, and has requeued the job if it is to run again.
        closed = known.last
        if srun_code and closed and closed.job_id == job.job_id and requeue.is_owed(closed):
            code, cause = requeue.make(run, job, closed)
            return code, cause in restart_policy.OVER or code == GIVEN_UP_EXIT_CODE
        given_up = known.why_given_up(job.job_id)
        return srun_code, bool(given_up) or known.last_cause in restart_policy.OVER
    print(evidence.srun_messages(run, attempt) or "", end="")
    collected = evidence.of_this_job(run, job, attempt, srun_code)
    verdict = judge(collected)
    decision = _write(run, attempt, verdict)
    if not decision.restart:
        return decision.exit_code, True
    if collected.stopped == Cause.CANCELLED and verdict.cause != Cause.NODE_FAILURE:
        _warn(run, attempt, "not restarted: the job was cancelled while its ranks were failing")
        return decision.exit_code, True
    try:
        if not job_states.is_requeued(slurm.job_fields(job.job_id), job.restarts):
            slurm.requeue(job.job_id)
    except LaunchError as error:
        _warn(run, attempt, f"not restarted: {error}; to resume:  {run.shell_command('resume')}")
        return decision.exit_code or 1, False
    if verdict.suspect and verdict.node:
        exclude_nodes.leave_out(run, attempt, verdict, _needed_nodes(run))
    return decision.exit_code, False


def end_local(
    run: RunDir, deaths: Sequence[Death], signalled: bool, srun: SrunEnd | None = None
) -> Verdict | None:
    """Record why the ranks of a run without a job have ended; None if rank 0 has recorded it.

    Args:
        run: The run directory.
        deaths: The ranks that failed.
        signalled: A signal had asked the run to stop.
        srun: How srun ended, if it started the ranks.
    """
    attempt = history.read(run.journal).open
    if attempt is None:
        return None
    # Ranks that our signal ended before they could handle it. What other ranks report of that (a
    # peer that is gone, an interrupted start) is not a failure.
    unready = signalled and any(death.by_signal and not death.first for death in deaths)
    collected = Evidence(
        exit_code=srun.exit_code if srun else 1 if deaths else 0,
        failures=[] if unready else failures.read_all(run),
        deaths=evidence.with_peers(deaths, run.rank_log),
        lost_nodes=srun.lost_nodes if srun else (),
        world_size=attempt.world_size,
        stopped=Cause.CANCELLED if signalled else None,
        not_started=srun.not_started if srun else "",
    )
    verdict = judge(collected)
    _write(run, attempt, verdict)
    return verdict


def _close_last(run: RunDir, job: BatchJob | None) -> None:
    """Judge an attempt whose end nobody saw: its batch script was killed, or its node was lost."""
    attempt = history.read(run.journal).open
    if attempt is None:
        return
    if job and job.job_id == attempt.job_id:
        collected = evidence.of_this_job(run, job, attempt, srun_code=None)
    else:
        collected = evidence.of_another_job(run, attempt)
    _write(run, attempt, judge(collected))


def _write(run: RunDir, attempt: Attempt, verdict: Verdict) -> Decision:
    """Record the verdict and what follows from it, and print both to the job's log."""
    if verdict.cause not in restart_policy.STOPS | {Cause.FINISHED, Cause.CANCELLED}:
        journal.append(run.journal, {"event": "failed", **attempt.key, **_of_rank(verdict)})
    code = restart_policy.exit_code_of(verdict.cause)
    ended: Entry = {"event": "ended", **attempt.key, "cause": verdict.cause, "exit_code": code}
    if verdict.step is not None:
        ended["step"] = verdict.step
    if verdict.error:
        ended["detail"] = verdict.error
    journal.append(run.journal, ended)
    if attempt.job_id is None:
        return Decision(restart=False, exit_code=code)
    print(f"the attempt ended: {verdict.cause}: {verdict.error}", flush=True)
    decision = _decide(run)
    if decision.given_up:
        given_up: Entry = {"event": "given_up", **attempt.key, "detail": decision.given_up}
        journal.append(run.journal, {**given_up, "exit_code": decision.exit_code})
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

    return restart_policy.decide(history.read(run.journal), load_config(run.config))


def _needed_nodes(run: RunDir) -> int:
    from llada_sft.config import load_config

    slurm = load_config(run.config).slurm
    return slurm.elastic[0] if slurm.elastic else slurm.nodes


def _warn(run: RunDir, attempt: Attempt, detail: str) -> None:
    print(detail, flush=True)
    warning: Entry = {"event": "warning", "attempt": attempt.number, "detail": detail}
    journal.append(run.journal, warning)


if __name__ == "__main__":
    # Called by a launcher that is older than `python -m llada_sft.cluster`.
    print(OLDER_LAUNCHER, file=sys.stderr)
    raise SystemExit(EXIT_CODE)
