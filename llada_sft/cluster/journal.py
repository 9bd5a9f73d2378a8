"""What happened to a run, one JSON line each: submitted, started, saved, ended and why.

Written by the launcher, by what starts the ranks (the batch script, or `--local`) and by rank 0 on
the same node; read by `status` and by the next attempt; it needs no accounting database. A line is
appended with one `os.write`, so two writers never mix theirs.

    launched    the job was submitted, or a local run begun
    started     an attempt begins: its nodes and ranks
    resumed     rank 0 has loaded: the step that the attempt goes on from, and the versions
    checkpoint  one was written: its step, seconds and bytes
    signal      a rank was told to stop
    nonfinite   a loss was NaN or infinite: its step and rows
    warning     anything that a person should look at
    failed      the first rank that failed, its node, error and traceback
    ended       the attempt is over: cause, step, exit code
    excluded    a suspect node is left out of the attempts that follow
    given_up    the restart budget is used up: why
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict

Event = Literal[
    "launched",
    "started",
    "resumed",
    "checkpoint",
    "signal",
    "nonfinite",
    "warning",
    "failed",
    "ended",
    "excluded",
    "given_up",
]


class Entry(TypedDict, total=False):
    time: str
    event: Event
    # Counts the starts of a run, over all its jobs; from 1.
    attempt: int
    # SLURM's; absent with --local.
    job_id: str
    nodes: str
    world_size: int
    # SLURM's count of the job's restarts.
    restarts: int
    # Optimizer steps that were made.
    step: int
    versions: dict[str, str | None]
    # Of a checkpoint.
    seconds: float
    num_bytes: int
    signals: list[str]
    rank: int
    node: str
    # A word of `causes.Cause`.
    cause: str
    # In one line, what the cause's word leaves open.
    detail: str
    error: str
    traceback: str
    exit_code: int
    # "file:line" of each.
    rows: list[str]


def append(journal: Path, entry: Entry) -> None:
    """Append one line, with the time."""
    stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
    line = json.dumps(stamped) + "\n"
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(journal: Path) -> list[Entry]:
    """Read all entries; a line that was cut off by a full disk is left out."""
    if not journal.exists():
        return []
    entries: list[Entry] = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def next_attempt(journal: Path) -> int:
    """Number the attempt that is about to start."""
    return 1 + sum(entry.get("event") == "started" for entry in read(journal))


def current_attempt(journal: Path) -> int:
    """Give the number of the attempt that started last."""
    return max(1, next_attempt(journal) - 1)


def last_job_id(journal: Path) -> str | None:
    """Give the SLURM job that was launched or started last; None if that was a local run."""
    for entry in reversed(read(journal)):
        if entry.get("event") in ("launched", "started"):
            return entry.get("job_id")
    return None
