"""The requeue that rank 0 could not make, made by the batch script on the host.

Rank 0 requeues a job that was asked to stop, after the save. In a container, and on nodes of some
clusters, there is no scontrol for it: then it has recorded that, and why it was asked is not known.
"""

from llada_sft.cluster import history, journal, restart_policy
from llada_sft.cluster.attempt.evidence import BatchJob
from llada_sft.cluster.causes import GIVEN_UP_EXIT_CODE, Cause
from llada_sft.cluster.history import Attempt, History
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.rank import stopping
from llada_sft.run_dir import RunDir


def is_owed(attempt: Attempt) -> bool:
    """Return whether rank 0 has recorded that the job could not be requeued."""
    ended = attempt.ended or Entry()
    return attempt.cause in restart_policy.STOPS and ended.get("exit_code", 0) != 0


def make(run: RunDir, job: BatchJob, attempt: Attempt) -> tuple[int, Cause]:
    """Ask SLURM why the job was to stop, requeue it unless it was cancelled, and record that.

    Returns:
        The job's exit code, and the cause.
    """
    # Here, not above: most attempts end without it.
    from llada_sft.config import load_config

    config = load_config(run.config)

    def ended(cause: Cause, exit_code: int = 0) -> Entry:
        return {"event": "ended", **attempt.key, "cause": cause, "exit_code": exit_code}

    def given_up(cause: Cause) -> str:
        entries = history.read(run.journal).entries
        return restart_policy.decide(History([*entries, ended(cause)]), config).given_up

    signals = [name for entry in attempt.entries for name in entry.get("signals", ())]
    rank_job = stopping.RankJob(job.job_id, job.restarts, config.slurm.signal_lead_s)
    reason = stopping.after_stop(signals, rank_job, given_up=given_up)
    if reason.error:
        print(f"not requeued by the batch script, either: {reason.error}", flush=True)
        return 1, reason.cause
    step = (attempt.ended or Entry()).get("step")
    entry = ended(reason.cause)
    if step is not None:
        entry["step"] = step
    journal.append(run.journal, {**entry, "detail": "recorded by the batch script"})
    print(f"the batch script asked SLURM: {reason.cause}", flush=True)
    if not reason.given_up:
        return 0, reason.cause
    print(f"given up: {reason.given_up}", flush=True)
    given: Entry = {"event": "given_up", **attempt.key, "detail": reason.given_up}
    journal.append(run.journal, {**given, "exit_code": GIVEN_UP_EXIT_CODE})
    return GIVEN_UP_EXIT_CODE, reason.cause
