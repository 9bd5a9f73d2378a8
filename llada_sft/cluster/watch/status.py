"""What a run is doing, from its own files and one question to SLURM; with or without sacct.

A person looks at a run when something is wrong with it: whatever state one file is in, `status`
shows what the others say.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from llada_sft.cluster import failures, job_states, run_files, slurm
from llada_sft.cluster.attempt import exclude_nodes
from llada_sft.cluster.causes import FIXED_BY_THE_USER
from llada_sft.cluster.history import Attempt, History
from llada_sft.cluster.moved import rebase
from llada_sft.cluster.owner import owner_sight
from llada_sft.cluster.run_files import printable
from llada_sft.cluster.watch import pending
from llada_sft.cluster.watch.checkpoints import checkpoint_paths
from llada_sft.cluster.watch.progress import clock
from llada_sft.cluster.watch.starting import age
from llada_sft.cluster.watch.summary import (
    Summary,
    own_job,
    read_history,
    read_run,
    why_ended,
)
from llada_sft.config import Config, load_run_config
from llada_sft.errors import LaunchError, LladaSftError
from llada_sft.run_dir import RunDir

SHOWN_ATTEMPTS = 5
SHOWN_FAILURE_LINES = 50
# What one line says, without a traceback.
Row = tuple[str, str]


def status_lines(run: RunDir) -> list[str]:
    """Describe the run in a few lines; a file that cannot be read is one line, not an error."""
    with slurm.patience():
        return [printable(f"{name:<12} {text}") for name, text in _rows(run)]


def _rows(run: RunDir) -> Iterator[Row]:
    yield from _safely("config", lambda: _of_config(run))
    summary, slurm_problem = read_run(run)
    history = summary.history
    if "journal" in summary.problems:
        yield "journal", summary.problems["journal"]
    yield from _safely("job", lambda: _job(summary, slurm_problem))
    yield from _progress(summary)
    yield from _safely("checkpoints", lambda: [("checkpoints", _checkpoints(run))])
    yield from _safely("owner", lambda: [("owner", owner_sight.line(run))])
    yield from _safely("attempts", lambda: _column("attempts", attempt_lines(summary)))
    yield from _safely("attempts", lambda: _after_failures(history))
    yield from _safely("failure", lambda: [("failure", line) for line in failure_lines(run)])


def _job(summary: Summary, problem: str) -> Iterator[Row]:
    """Yield the state of the job; if it is pending, why, and when SLURM expects it to start."""
    job_id, fields = summary.job_id, summary.job
    if job_id is None:
        yield "job", "none (local, or not launched yet)"
        return
    described = f"{job_id} ({problem})" if problem else job_states.described(job_id, fields)
    yield "job", described
    # A job that is held says so, and what to do.
    if summary.pending_reason and ":" not in described:
        yield "waits", pending.in_words(summary.pending_reason, job_id)
    if summary.state == "pending" and "StartTime" in fields:
        yield "start", pending.start_line(summary.estimated_start, time.time())


def _progress(summary: Summary) -> Iterator[Row]:
    if "progress" in summary.problems:
        yield "progress", summary.problems["progress"]
    else:
        left = summary.seconds_left
        about = "" if left is None else f", about {clock(left)} left"
        yield "progress", summary.progress.line(summary.total_steps, summary.step) + about
    if summary.doing:
        yield "doing", summary.doing


def _safely(name: str, make: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield rows, or one that says why there are none."""
    try:
        yield from list(make())
    except OSError as error:
        yield name, f"cannot be read: {error.filename}: {error.strerror}"
    # The last resort: whatever is wrong with one file, the other rows are shown.
    except Exception as error:
        yield name, f"cannot be read: {type(error).__name__}: {error}"


def _column(name: str, lines: Iterable[str]) -> list[Row]:
    """Put the name in front of the first line only."""
    return [(name if number == 0 else "", line) for number, line in enumerate(lines)]


def _of_config(run: RunDir) -> Iterator[Row]:
    try:
        # Opened without waiting first: a named pipe would block for ever.
        run_files.read_start(run.config, 1)
        config = rebase(load_run_config(run.config), run)
    except OSError as error:
        yield "directory", str(run.path)
        yield "config", f"{run.config}: cannot be read: {error.strerror}"
        return
    except LladaSftError as error:
        yield "directory", str(run.path)
        yield from _column("config", str(error).splitlines())
        return
    yield "run", config.run.name
    yield "directory", str(run.path)
    yield "model", f"{config.model.path} ({config.model.init})"
    yield "data", ", ".join(config.data.train_paths)
    yield (
        "ranks",
        f"{_nodes(config)} nodes × {config.slurm.ranks_per_node},"
        f" global batch {config.global_batch_size} {config.global_batch_unit}",
    )


def failure_lines(run: RunDir) -> list[str]:
    """Return the errors of the last attempt's ranks that the user can fix, once each."""
    errors = [
        failure.error for failure in failures.read_all(run) if failure.cause in FIXED_BY_THE_USER
    ]
    lines = list(dict.fromkeys(line for error in errors for line in error.splitlines()))
    more = len(lines) - SHOWN_FAILURE_LINES
    return lines[:SHOWN_FAILURE_LINES] + ([f"and {more} more lines"] if more > 0 else [])


def last_job(run: RunDir) -> str | None:
    """Return the run's last SLURM job, never that of the run that it was copied from.

    Raises:
        LaunchError: The journal cannot be read.
    """
    try:
        return own_job(run, read_history(run))
    except OSError as error:
        raise LaunchError(f"{run.journal}: cannot be read: {error.strerror}") from None


def cancel_run(run: RunDir) -> str:
    """Cancel the run's job and give its id.

    Raises:
        LaunchError: The run has no job.
    """
    job_id = last_job(run)
    if job_id is None:
        owner = owner_sight.line(run)
        raise LaunchError(
            f"{run.path}: has no SLURM job; stop a local run with Ctrl-C (its owner: {owner})"
        )
    slurm.cancel(job_id)
    return job_id


def _nodes(config: Config) -> str:
    return " to ".join(map(str, config.slurm.elastic or (config.slurm.nodes,)))


def _checkpoints(run: RunDir) -> str:
    paths = checkpoint_paths(run)
    damaged = ", ".join(path.name for path in sorted(run.checkpoints.glob("step_*.damaged*")))
    ending = f"; damaged: {damaged}" if damaged else ""
    if not paths:
        return f"none{ending}"
    steps = ", ".join(f"step {path.name[5:]}" for path in paths)
    # lstat: it may be a broken link. And the run may have removed it just now.
    with suppress(FileNotFoundError):
        steps += f" ({age(time.time() - paths[-1].lstat().st_mtime)} ago)"
    return steps + _best(run) + ending


def _best(run: RunDir) -> str:
    """Return which checkpoint is kept as the best one, if any."""
    from llada_sft.training.checkpoint.folder import best_step

    try:
        return f"; best: step {best_step(run.checkpoints)}"
    except LladaSftError:
        return ""


def attempt_lines(summary: Summary) -> list[str]:
    """Return the last attempts, one line each: number, nodes, steps, and why it ended."""
    attempts = summary.history.attempts
    if not attempts:
        return ["none"]
    is_seen = summary.job.get("JobState") == "RUNNING"
    if_open = "running" if is_seen else "running, or ended by force"
    lines = [_attempt_line(attempt, if_open) for attempt in attempts]
    earlier = [f"{len(lines) - SHOWN_ATTEMPTS} earlier"] if len(lines) > SHOWN_ATTEMPTS else []
    return [*earlier, *lines[-SHOWN_ATTEMPTS:]]


def _attempt_line(attempt: Attempt, if_open: str) -> str:
    on_nodes = f"on {attempt.nodes}" if attempt.nodes else ""
    steps = ""
    if attempt.resumed_step is not None:
        steps = f"steps {attempt.resumed_step} to {attempt.known_step}"
    why = why_ended(attempt) or if_open
    return ", ".join(part for part in (str(attempt.number), on_nodes, steps) if part) + f": {why}"


def _after_failures(history: History) -> Iterator[Row]:
    """Yield what follows from failures: excluded nodes, and whether the run was given up."""
    if nodes := exclude_nodes.excluded(history):
        yield "excluded", ", ".join(nodes)
    if history.given_up is not None:
        yield "given up", history.given_up.get("detail", "")
