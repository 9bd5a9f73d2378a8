"""A signal to stop: why SLURM sent it, and whether rank 0 requeues the job after the save.

What tells the reasons apart, as seen on SLURM 22.05.8, is `scontrol show job` at that moment:

    preempted     USR2, or TERM where the cluster does not set `preempt_send_user_signal`:
                  RUNNING, PreemptTime=a time, EndTime=when the grace time is over. When it is over:
                  TERM, COMPLETING, Restarts+1, PreemptTime gone: SLURM has requeued by itself.
                  A job that exits with 0 before is *not* requeued, whatever the manual says.
    time limit    USR2: RUNNING, EndTime=the limit, up to a minute later than asked for. At the
                  limit, up to 30 s late: TERM, COMPLETING, Reason=TimeLimit; not requeued.
    told to stop  USR2 or TERM by `scancel --signal`: RUNNING, and nothing else changes
    requeued      TERM by somebody's `scontrol requeue`: COMPLETING, Restarts+1
    cancelled     TERM by scancel: COMPLETING, Restarts as before, EndTime=now

No handler saves anything: all ranks agree at a step's boundary (`training/consensus.py`). When
everything is on disk rank 0 calls `scontrol requeue`, once; TERM and CONT then reach all ranks: a
consequence, not a new event. It works as well while the job is COMPLETING after its time limit.
"""

import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from llada_sft.cluster import job_states, slurm
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.owner.ownership import job_of
from llada_sft.cluster.slurm import Job
from llada_sft.errors import LaunchError

# How much longer than `signal_lead_s` before the limit USR2 may come: a minute by SLURM's manual,
# and as long again for its polling.
EARLY_S = 120
# Before each attempt to requeue: SLURM's controller may be busy or restarting.
PAUSES_S = (0.0, 2.0, 5.0)
# All ranks wait while SLURM is asked before the save, and the time is short.
ASK_BEFORE_SAVE_S = 3.0


@dataclass(frozen=True)
class RankJob(Job):
    """The SLURM job of this attempt, as its ranks see it.

    Attributes:
        signal_lead_s: Seconds before the time limit at which USR2 was asked for.
    """

    signal_lead_s: int

    @staticmethod
    def of(environment: Mapping[str, str], signal_lead_s: int) -> "RankJob | None":
        """Read it from SLURM's variables; None for a rank of a launcher."""
        job_id = job_of(environment)
        if job_id is None:
            return None
        return RankJob(job_id, int(environment.get("SLURM_RESTART_COUNT") or 0), signal_lead_s)


@dataclass(frozen=True)
class StopReason:
    """Why the ranks were signalled to stop.

    Attributes:
        cause: In the journal's words.
        error: Why the job, which should continue, could not be requeued; else empty.
        given_up: Why it is not to run again although nobody cancelled it; else empty.
    """

    cause: Cause
    error: str = ""
    given_up: str = ""


def before_save(signals: Collection[str], job: RankJob | None) -> Cause | None:
    """Ask why the ranks were signalled to stop; None if SLURM does not answer at once.

    Now it is seen best: a preempted job whose grace time is over looks like any that is requeued.
    """
    if job is None:
        return _of_local(signals)
    try:
        with _term_blocked():
            return cause_of(signals, slurm.job_fields(job.job_id, ASK_BEFORE_SAVE_S), job)
    except LaunchError:
        return None


def after_stop(
    signals: Collection[str],
    job: RankJob | None,
    cause: Cause | None = None,
    given_up: Callable[[Cause], str] = lambda cause: "",
) -> StopReason:
    """Requeue the job unless it was cancelled or is requeued already; rank 0 only, after the save.

    Args:
        signals: The names of the signals that any rank got.
        job: None for a local run, which nobody requeues.
        cause: What `before_save` has found.
        given_up: Returns why the job is not to run again after a cause; empty if it is.
    """
    if job is None:
        return StopReason(_of_local(signals))
    error = ""
    with _term_blocked():
        for pause_s in PAUSES_S:
            time.sleep(pause_s)
            try:
                fields = slurm.job_fields(job.job_id)
                now = cause_of(signals, fields, job)
                # What happened since (it is requeued) does not change the cause; a scancel does.
                cause = now if cause is None or now == Cause.CANCELLED else cause
                if why := given_up(cause):
                    return StopReason(cause, given_up=why)
                if cause != Cause.CANCELLED and not job_states.is_requeued(fields, job.restarts):
                    slurm.requeue(job.job_id)
                return StopReason(cause)
            except LaunchError as problem:
                error = str(problem)
                # In a container, and on nodes of some clusters: the batch script will ask.
                if shutil.which("scontrol") is None:
                    break
    return StopReason(cause or Cause.TOLD_TO_STOP, error)


def cause_of(signals: Collection[str], fields: Mapping[str, str], job: RankJob) -> Cause:
    """Return the cause, from the signals and from what `scontrol show job` says.

    Args:
        signals: The names of the signals that any rank got.
        fields: What scontrol says now.
        job: As it was when the attempt started.
    """
    usr2 = "SIGUSR2" in signals
    if job_states.is_requeued(fields, job.restarts):
        # An operator's requeue sends TERM alone; after USR2 it was the end of the grace time.
        return Cause.PREEMPTED if usr2 else Cause.REQUEUED
    if fields.get("Reason") == "TimeLimit":
        return Cause.TIME_LIMIT
    if job_states.is_ending(fields.get("JobState", "")):
        return Cause.CANCELLED
    if fields.get("PreemptTime", "None") not in ("None", ""):
        return Cause.PREEMPTED
    if usr2 and _seconds_left(fields) <= job.signal_lead_s + EARLY_S:
        return Cause.TIME_LIMIT
    return Cause.TOLD_TO_STOP


def _of_local(signals: Collection[str]) -> Cause:
    return Cause.TOLD_TO_STOP if "SIGUSR2" in signals else Cause.CANCELLED


def _seconds_left(fields: Mapping[str, str]) -> float:
    """Count the seconds until the job's limit; infinite where it has none."""
    end = fields.get("EndTime", "")
    return int(end) - time.time() if end.isdecimal() else float("inf")


@contextmanager
def _term_blocked() -> Iterator[None]:
    """Shield scontrol, which inherits this: SLURM sends TERM to all processes of the step.

    That comes as an answer to the very requeue that scontrol asks for.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
