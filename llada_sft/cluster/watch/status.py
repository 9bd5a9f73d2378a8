"""What a run is doing, from its own files and one question to SLURM; with or without sacct.

A person looks at a run when something is wrong with it: whatever state one file is in, `status`
shows what the others say.
"""

import csv
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from llada_sft.cluster import failures, job_states, journal, run_files, slurm
from llada_sft.cluster.attempt import exclude_nodes
from llada_sft.cluster.causes import FIXED_BY_THE_USER
from llada_sft.cluster.history import Attempt, History
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.moved import is_copy, rebase
from llada_sft.cluster.owner import owner_sight
from llada_sft.cluster.run_files import printable
from llada_sft.config import Config, load_run_config
from llada_sft.errors import ConfigError, LaunchError, LladaSftError
from llada_sft.run_dir import RunDir

SHOWN_ATTEMPTS = 5
SHOWN_FAILURE_LINES = 50
# What is read of metrics.csv: its columns, and enough rows for the last of a validation to be
# among them.
HEADER_BYTES = 64 << 10
METRICS_BYTES = 1 << 20
# The numbers that the line of progress shows besides the losses.
_SPEEDS = {
    "tokens_per_s": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "gpu_gb": "{:.1f} GB",
}
# What one line says, without a traceback.
Row = tuple[str, str]


def find_run(path: str) -> RunDir:
    """Take up a run directory, whatever state its files are in.

    Raises:
        ConfigError: The path is not a run directory.
    """
    run = RunDir(Path(path).absolute())
    try:
        is_run = any(file.exists() or file.is_symlink() for file in (run.config, run.journal))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not is_run:
        raise ConfigError(f"{path}: not a run directory: it has no config.yaml")
    return run


def status_lines(run: RunDir) -> list[str]:
    """Describe the run in a few lines; a file that cannot be read is one line, not an error."""
    with slurm.patience():
        return [printable(f"{name:<12} {text}") for name, text in _rows(run)]


def _rows(run: RunDir) -> Iterator[Row]:
    entries: list[Entry] = []
    yield from _safely("config", lambda: _of_config(run))
    yield from _safely("journal", lambda: _read_journal(run, entries))
    known = History(entries)
    yield from _safely("job", lambda: [("job", _job(run, known))])
    yield from _safely("progress", lambda: [("progress", last_metrics(run, known.total_steps))])
    yield from _safely("checkpoints", lambda: [("checkpoints", _checkpoints(run))])
    yield from _safely("owner", lambda: [("owner", owner_sight.line(run))])
    yield from _safely("attempts", lambda: _column("attempts", attempt_lines(known)))
    yield from _safely("attempts", lambda: _after_failures(known))
    yield from _safely("failure", lambda: [("failure", line) for line in failure_lines(run)])


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


def _read_journal(run: RunDir, entries: list[Entry]) -> list[Row]:
    """Fill the list with the journal's entries."""
    try:
        entries += journal.parse(run_files.read_end(run.journal))
    except FileNotFoundError:
        if run.journal.is_symlink():
            raise
    return []


def newest_step(run: RunDir) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    return max((int(path.name[5:]) for path in _checkpoint_paths(run) if path.is_dir()), default=0)


def last_metrics(run: RunDir, total_steps: int | None = None) -> str:
    """Return the last step, of how many, with the last losses and speed from the metrics file.

    Raises:
        OSError: It cannot be read.
    """
    try:
        start = run_files.read_start(run.metrics, HEADER_BYTES)
        end = run_files.read_end(run.metrics, METRICS_BYTES)
    except FileNotFoundError:
        if run.metrics.is_symlink():
            raise
        return "no step yet"
    columns = next(iter(_csv_rows(start)), [])
    if "step" not in columns:
        return f"cannot be read: {run.metrics}: has no column step" if start else "no step yet"
    last: dict[str, str] = {}
    for row in _csv_rows(end):
        # Other rows are torn, or not of this file.
        if len(row) == len(columns) and row[columns.index("step")].isdecimal():
            last |= {name: value for name, value in zip(columns, row, strict=True) if value}
    losses = [f"{name} {last[name]}" for name in last if name.endswith("loss")]
    step = last.get("step", "0")
    # What was known at the last checkpoint may be an estimate, and too low by now.
    known = total_steps is not None and int(step) <= total_steps
    shown_step = f"step {step} of {total_steps}" if known else f"step {step}"
    return ", ".join([shown_step, *losses, *_speeds(last)])


def _speeds(last: Mapping[str, str]) -> Iterator[str]:
    """Yield the numbers of the run's speed and memory that the file has."""
    for name, form in _SPEEDS.items():
        # Not every value is a number: the file may be damaged.
        with suppress(KeyError, ValueError):
            yield form.format(float(last[name]))


def _csv_rows(content: bytes) -> Iterator[list[str]]:
    """Yield the rows of whole lines; one that is not CSV is skipped."""
    *lines, _ = content.decode("utf-8", errors="replace").split("\n")
    for line in lines:
        try:
            yield from csv.reader([line])
        except csv.Error:
            continue


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
    if is_copy(run):
        return None
    try:
        return History(journal.parse(run_files.read_end(run.journal))).job_id
    except FileNotFoundError:
        return None
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


def _job(run: RunDir, history: History) -> str:
    job_id = None if is_copy(run) else history.job_id
    if job_id is None:
        return "none (local, or not launched yet)"
    try:
        return job_states.described(job_id, slurm.job_fields(job_id))
    except LaunchError as error:
        return f"{job_id} ({error})"


def _checkpoints(run: RunDir) -> str:
    paths = _checkpoint_paths(run)
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


def newest_of_run(run: RunDir) -> Path | None:
    """Return the newest path that is named like a complete checkpoint."""
    paths = _checkpoint_paths(run)
    return paths[-1] if paths else None


def _checkpoint_paths(run: RunDir) -> list[Path]:
    complete = (path for path in run.checkpoints.glob("step_*") if path.name[5:].isdecimal())
    return sorted(complete, key=lambda path: int(path.name[5:]))


def age(seconds: float) -> str:
    """Return a duration in its largest unit: "40 s", "12 min", "3 h"."""
    for unit_s, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def attempt_lines(history: History) -> list[str]:
    """Return the last attempts, one line each: number, nodes, steps, and why it ended."""
    if not history.attempts:
        return ["none"]
    lines = [_attempt_line(attempt) for attempt in history.attempts]
    earlier = [f"{len(lines) - SHOWN_ATTEMPTS} earlier"] if len(lines) > SHOWN_ATTEMPTS else []
    return [*earlier, *lines[-SHOWN_ATTEMPTS:]]


def _attempt_line(attempt: Attempt) -> str:
    on_nodes = f"on {attempt.nodes}" if attempt.nodes else ""
    steps = ""
    if attempt.resumed_step is not None:
        steps = f"steps {attempt.resumed_step} to {attempt.known_step}"
    why = "running, or ended by force"
    if ended := attempt.ended:
        why = ended.get("cause", "ended") + (f" ({ended['detail']})" if "detail" in ended else "")
        why += f": {ended['error']}" if "error" in ended else ""
    return ", ".join(part for part in (str(attempt.number), on_nodes, steps) if part) + f": {why}"


def _after_failures(history: History) -> Iterator[Row]:
    """Yield what follows from failures: excluded nodes, and whether the run was given up."""
    if nodes := exclude_nodes.excluded(history):
        yield "excluded", ", ".join(nodes)
    if history.given_up is not None:
        yield "given up", history.given_up.get("detail", "")
