"""What an attempt has left, collected for the judge: its files, and what SLURM says of the job."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from llada_sft.cluster import failures, history, job_states, run_files, slurm
from llada_sft.cluster.attempt.verdict import Death, Evidence, read_srun, why_not_started
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.history import Attempt
from llada_sft.cluster.peers import last_line_of_peer
from llada_sft.cluster.restart_policy import STOPS
from llada_sft.cluster.slurm import Job
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

# How much of the end of a rank's log is read.
_READ_BYTES = 1 << 16
# What a job that is over says of itself.
_CAUSE_OF_STATE = {
    "CANCELLED": Cause.CANCELLED,
    "TIMEOUT": Cause.TIME_LIMIT,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "PREEMPTED": Cause.PREEMPTED,
}


@dataclass(frozen=True)
class BatchJob(Job):
    """The SLURM job around an attempt, as its batch script sees it.

    Attributes:
        nodes: Its nodes, as SLURM writes them: "node[1-2]".
        world_size: Its ranks.
    """

    nodes: str
    world_size: int

    @staticmethod
    def of(environment: Mapping[str, str]) -> "BatchJob":
        """Read it from the variables of a batch script.

        Raises:
            LaunchError: This is not a batch script.
        """
        try:
            return BatchJob(
                environment["SLURM_JOB_ID"],
                int(environment.get("SLURM_RESTART_COUNT") or 0),
                environment["SLURM_JOB_NODELIST"],
                int(environment["SLURM_JOB_NUM_NODES"]) * int(environment["SLURM_NTASKS_PER_NODE"]),
            )
        except KeyError as error:
            name = error.args[0]
            raise LaunchError(f"{name} is not set: this belongs into a SLURM job") from None


@dataclass(frozen=True)
class SrunEnd:
    """How srun ended that a launcher had started in its allocation.

    Attributes:
        exit_code: Of srun.
        deaths: The ranks that died, as it reports them.
        lost_nodes: The nodes that were lost.
        not_started: Its message why it started no rank; empty if it started them.
    """

    exit_code: int
    deaths: Sequence[Death]
    lost_nodes: Sequence[str]
    not_started: str

    @staticmethod
    def of(exit_code: int, messages: str) -> "SrunEnd":
        """Read it from srun's exit code and messages."""
        deaths, lost = read_srun(messages)
        return SrunEnd(exit_code, deaths, lost, why_not_started(messages))


def of_this_job(run: RunDir, job: BatchJob, attempt: Attempt, srun_code: int | None) -> Evidence:
    """Collect what an attempt of this job has left.

    Args:
        run: The run directory.
        job: The job as it is now.
        attempt: The attempt.
        srun_code: srun's exit code; None where its batch script was killed.
    """
    messages = srun_messages(run, attempt)
    deaths, lost = read_srun(messages or "")
    nodes: list[str] = []
    with suppress(LaunchError):
        nodes = slurm.hostnames(attempt.nodes)
        lost = lost or slurm.lost_nodes(attempt.nodes)
    return Evidence(
        exit_code=srun_code,
        failures=failures.read_all(run),
        deaths=with_peers(deaths, lambda rank: run.slurm / f"{job.job_id}_{rank}_log.out"),
        lost_nodes=lost,
        nodes=nodes,
        world_size=attempt.world_size,
        stopped=_stopped(run, attempt, job),
        silent_srun=srun_code is None and not (messages or "").strip(),
        not_started=why_not_started(messages or ""),
    )


def with_peers(deaths: Sequence[Death], log_of: Callable[[int], Path]) -> list[Death]:
    """Add the line on a peer that NCCL's watchdog logs before it aborts a rank."""
    return [
        replace(death, of_peer=last_line_of_peer(_end_of(log_of(death.rank))))
        if death.how.startswith("Aborted")
        else death
        for death in deaths
    ]


def _end_of(log: Path) -> str:
    try:
        return run_files.read_end(log, _READ_BYTES).decode(errors="replace")
    except OSError:
        return ""


def of_another_job(run: RunDir, attempt: Attempt) -> Evidence:
    """Collect what an attempt has left whose run was started again by hand since then."""
    state = known_job_fields(attempt.job_id).get("JobState", "") if attempt.job_id else ""
    return Evidence(failures=failures.read_all(run), stopped=_CAUSE_OF_STATE.get(state))


def srun_messages(run: RunDir, attempt: Attempt) -> str | None:
    """Return what srun itself printed of an attempt; None if it was not started."""
    log = run.srun_log(attempt.job_id or "", attempt.restarts)
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else None


def known_job_fields(job_id: str) -> dict[str, str]:
    """Return what `scontrol show job` says; empty where it says nothing."""
    try:
        return slurm.job_fields(job_id)
    except LaunchError:
        return {}


def _stopped(run: RunDir, attempt: Attempt, job: BatchJob) -> Cause | None:
    """Return what SLURM did to the job, from its state and the signals that ranks recorded."""
    before = attempt.restarts
    fields = known_job_fields(job.job_id) if job.restarts == before else {}
    if job.restarts > before or job_states.is_requeued(fields, before):
        return _cause_of_signal(run, attempt) or Cause.REQUEUED
    if not job_states.is_ending(fields.get("JobState", "")):
        return None
    return Cause.TIME_LIMIT if fields.get("Reason") == "TimeLimit" else Cause.CANCELLED


def _cause_of_signal(run: RunDir, attempt: Attempt) -> Cause | None:
    # Read again: SLURM has taken its time to answer.
    now = [other for other in history.read(run.journal).attempts if other.number == attempt.number]
    causes = now[-1].signal_causes if now else []
    return next((cause for cause in causes if cause in STOPS), None)
