"""What one run is doing, as values: from its own files and from what SLURM says of its job.

`all_runs.py` shows a line of each, `json_status.py` writes them for machines, and `following.py`
shows the run that is followed. A file that cannot be read costs its own values, not the others.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from llada_sft.cluster import job_states, journal, restart_policy, run_files, slurm
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.history import Attempt, History
from llada_sft.cluster.owner import identity, liveness, owner_sight
from llada_sft.cluster.watch import pending, starting
from llada_sft.cluster.watch.checkpoints import Checkpoint, last_checkpoint
from llada_sft.cluster.watch.progress import METRICS_BYTES, RunProgress, read_progress
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

# `unknown`: SLURM does not answer, or the journal cannot be read. `lost`: nobody saw the end.
State = Literal[
    "prepared",
    "pending",
    "starting",
    "running",
    "ending",
    "stopped",
    "finished",
    "cancelled",
    "failed",
    "given up",
    "lost",
    "unknown",
]
ValueT = TypeVar("ValueT")
# What SLURM says of each job, by its id; None if it was not asked, or did not answer.
Jobs = Mapping[str, Mapping[str, str]] | None


@dataclass(frozen=True)
class Summary:
    """What one run is doing.

    Attributes:
        run: The run directory.
        history: Its journal.
        state: In one word.
        job_id: Its last SLURM job; None for a local run.
        job: What SLURM says of that job; empty if it does not know it, or does not answer.
        progress: How far it is.
        doing: What it does before its first step; empty after that.
        total_steps: The steps of the whole training, as far as they are known.
        checkpoint: The newest one.
        problems: Why what could not be read, by name: config, journal, state, progress,
            checkpoints.
    """

    run: RunDir
    history: History
    state: State
    job_id: str | None
    job: Mapping[str, str]
    progress: RunProgress
    doing: str
    total_steps: int | None
    checkpoint: Checkpoint | None
    problems: Mapping[str, str]

    @property
    def nodes(self) -> str:
        """The nodes of its last attempt, as SLURM writes them; empty for a local run."""
        return self.history.last.nodes if self.history.last else ""

    @property
    def step(self) -> int:
        """The last step that the metrics or the journal know; the metrics skip steps."""
        known = self.history.last.known_step if self.history.last else None
        return max(self.progress.step, known or 0)

    @property
    def pending_reason(self) -> str:
        """SLURM's word for why its job is pending; empty if it is not."""
        return pending.reason_of(self.job) if self.state == "pending" else ""

    @property
    def estimated_start(self) -> float | None:
        """When SLURM expects the pending job to start, in seconds since 1970; None if unknown."""
        return pending.start_time(self.job) if self.state == "pending" else None

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the time until the last step; None if it does not run."""
        return self.progress.seconds_left(self.total_steps) if self.state == "running" else None

    @property
    def last_time(self) -> str:
        """The time of the journal's last entry; empty if it has none."""
        return self.history.entries[-1].get("time", "") if self.history.entries else ""


def read_history(run: RunDir) -> History:
    """Read a journal for a person; one that does not exist has no entries.

    Raises:
        OSError: It cannot be read.
    """
    try:
        return History(journal.parse(run_files.read_end(run.journal)))
    except FileNotFoundError:
        if run.journal.is_symlink():
            raise
        return History([])


def own_job(run: RunDir, history: History) -> str | None:
    """Return the run's last SLURM job, never that of the run that it was copied from."""
    return None if history.job_id is None or _is_copy(run) else history.job_id


def may_be_queued(history: History) -> bool:
    """Return whether SLURM may still know the last job: the journal does not say that it is over.

    A job that was stopped is requeued, and pending again.
    """
    over = history.given_up is not None or history.last_cause in restart_policy.OVER
    return not (history.is_at_rest and over)


def summary_of(
    run: RunDir, history: History, jobs: Jobs, max_bytes: int = METRICS_BYTES
) -> Summary:
    """Say what a run is doing.

    Args:
        run: The run directory.
        history: Its journal.
        jobs: What SLURM says.
        max_bytes: How much of the end of its metrics file is read.
    """
    problems: dict[str, str] = {}

    def safely(name: str, read: Callable[[], ValueT], default: ValueT) -> ValueT:
        try:
            return read()
        except OSError as error:
            problems[name] = f"cannot be read: {error.filename}: {error.strerror}"
        # The last resort: whatever is wrong with one file, the other values are shown.
        except Exception as error:
            problems[name] = f"cannot be read: {error}"
        return default

    job_id = safely("config", lambda: own_job(run, history), None)
    job = (jobs or {}).get(job_id, {}) if job_id else {}
    attempt = history.open
    progress = safely("progress", lambda: read_progress(run, max_bytes), RunProgress())
    doing, total_steps = "", history.total_steps
    unknown: State = "unknown"
    state = safely("state", lambda: _state(run, history, job_id, job, jobs), unknown)
    if attempt is not None and state == "running":
        doing = starting.doing(run, attempt)
        state = "starting" if doing else state
    if attempt is not None and not attempt.new_steps:
        total_steps = starting.total_steps(run, attempt) or total_steps
    return Summary(
        run=run,
        history=history,
        state=state,
        job_id=job_id,
        job=job,
        progress=progress,
        doing=doing,
        total_steps=total_steps,
        checkpoint=safely("checkpoints", lambda: last_checkpoint(run), None),
        problems=problems,
    )


def read_run(run: RunDir) -> tuple[Summary, str]:
    """Say what a run is doing, with one question to SLURM.

    Returns:
        The summary, and why SLURM did not answer; empty if it did, or has no job of the run.
    """
    history, unreadable, problem = History([]), "", ""
    try:
        history = read_history(run)
    except OSError as error:
        unreadable = f"cannot be read: {error.filename}: {error.strerror}"
    jobs: Jobs = {}
    try:
        if job_id := own_job(run, history):
            jobs = {job_id: slurm.job_fields(job_id)}
    except LaunchError as error:
        jobs, problem = None, str(error)
    summary = summary_of(run, history, jobs)
    return (with_unreadable_journal(summary, unreadable) if unreadable else summary), problem


def with_unreadable_journal(summary: Summary, problem: str) -> Summary:
    """Return the summary of a run whose journal cannot be read."""
    return replace(summary, state="unknown", problems={"journal": problem, **summary.problems})


def _is_copy(run: RunDir) -> bool:
    """Return whether the run is a copy; without the reader of YAML if it is where it was."""
    with suppress(OSError):
        if str(run.hook).encode() in run_files.read_start(run.config, 1 << 18):
            return False
    from llada_sft.cluster.moved import is_copy

    return is_copy(run)


def _state(
    run: RunDir, history: History, job_id: str | None, job: Mapping[str, str], jobs: Jobs
) -> State:
    if history.last is None and history.job_id is None:
        return _before_the_first_attempt(run, history)
    if history.is_at_rest and not may_be_queued(history):
        return _ended(history)
    if job_id is None:
        return _of_local_run(run, history)
    if jobs is None:
        return "unknown"
    return _of_job(history, job)


def _before_the_first_attempt(run: RunDir, history: History) -> State:
    launched = any(entry.get("event") == "launched" for entry in history.entries)
    return "running" if launched and not owner_is_gone(run) else "prepared"


def _of_local_run(run: RunDir, history: History) -> State:
    if history.is_at_rest:
        return _ended(history)
    return "lost" if owner_is_gone(run) else "running"


def _of_job(history: History, job: Mapping[str, str]) -> State:
    word = job.get("JobState", "")
    if word == "PENDING":
        return "pending"
    if not word or job_states.has_ended(word):
        if word == "CANCELLED":
            return "cancelled"
        return "lost" if history.open is not None or history.last is None else _ended(history)
    if job_states.is_ending(word):
        return "ending"
    return "running" if history.open is not None else "starting"


def _ended(history: History) -> State:
    if history.given_up is not None:
        return "given up"
    cause = history.last_cause
    if cause == Cause.FINISHED:
        return "finished"
    if cause == Cause.CANCELLED:
        return "cancelled"
    return "stopped" if cause in restart_policy.STOPS else "failed"


def owner_is_gone(run: RunDir) -> bool:
    """Return whether no process is left that could write how a local run ended."""
    reader = identity.this_process("training")
    with suppress(OSError):
        sight = owner_sight.look(run.path, reader)
        return sight is not None and liveness.is_dead(sight.owner, reader, sight.seen)
    return False


def why_ended(attempt: Attempt) -> str:
    """Return why an attempt ended; empty if the journal does not say that it has."""
    ended = attempt.ended
    if ended is None:
        return ""
    why = ended.get("cause", "ended") + (f" ({ended['detail']})" if "detail" in ended else "")
    return why + (f": {ended['error']}" if "error" in ended else "")


def seconds_since(moment: float) -> float:
    """Return the seconds since a time; 0 if it is in the future of this host's clock."""
    return max(0.0, time.time() - moment)
