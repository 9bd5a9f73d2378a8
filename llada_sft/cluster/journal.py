"""What happened to a run, one JSON line each: submitted, started, saved, ended and why.

Written by the launcher, by what starts the ranks (the batch script, or `--local`) and by rank 0 on
the same node; it needs no accounting database. `history.py` makes attempts of these entries.
A line is appended with one write and is on the disk when `append` returns; whatever a crash or a
full disk left of the one before, it starts on a line of its own.

    launched    the job was submitted, or a local run started
    changed     the run was resumed with other values or other code, or was moved
    started     an attempt starts: its nodes and ranks
    resumed     rank 0 has loaded: the step that the attempt resumes from, and the versions
    preflight   the ranks have compared their nodes: how long it took, and the speed of the links
    checkpoint  one was written: its step, seconds and bytes
    signal      ranks were signalled, and all agreed to stop: which, by what, why; before the save
    nonfinite   a loss was NaN or infinite: its step and rows
    damaged     a checkpoint was not used when the run resumed: which, and why
    warning     anything that a person should look at
    failed      the first rank that failed, its node, error and traceback
    ended       the attempt is over: cause, step, exit code
    excluded    a suspect node is excluded from the attempts that follow
    given_up    the restart budget is used up: why
"""

import errno
import json
import os
import re
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Literal, TypedDict, Union, cast, get_args, get_origin, get_type_hints

from llada_sft.cluster.owner import fence

Event = Literal[
    "launched",
    "changed",
    "started",
    "resumed",
    "preflight",
    "checkpoint",
    "signal",
    "nonfinite",
    "damaged",
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
    # Of ranks that were started by hand: their common name, the "host:port" at which they meet,
    # and the claim that they belong to.
    group: str
    meet: str
    claim: str
    # Optimizer steps that were made.
    step: int
    # The steps of the whole training, as far as was known at that step.
    total_steps: int
    versions: dict[str, str | None]
    # Of a checkpoint; and of the longest way from one step to the next since the one before.
    seconds: float
    step_seconds: float
    num_bytes: int
    # Of the links between ranks, in GB/s, with the node of the slowest (`nodes/links.py`).
    speeds: dict[str, object]
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
    # What a resume changed: each key of the config with its old and its new value.
    keys: dict[str, list[object]]
    # What `--update-code` changed: commit and version before and after, and the files.
    code: dict[str, object]
    # The directory that the run was moved or copied from: jobs before this are not its own.
    moved_from: str


_JOB_ID = re.compile(r"[0-9]+(?:[_+][0-9]+)?")


def _python_types(hint: object) -> tuple[type, ...]:
    """Return what `isinstance` takes for a type of `Entry`."""
    origin = get_origin(hint)
    if origin is Union or origin is UnionType:
        return tuple(kind for part in get_args(hint) for kind in _python_types(part))
    if origin is Literal:
        return (str,)
    plain = cast(type, origin or hint)
    return (int, float) if plain is float else (plain,)


_TYPES = {key: _python_types(hint) for key, hint in get_type_hints(Entry).items()}


def append(journal: Path, entry: Entry) -> None:
    """Append one line, with the time; where that cannot be done, a warning is printed, once.

    A training never ends for its journal: an entry that cannot be written (the disk is full) is
    skipped.

    Raises:
        SupersededError: This process has claimed the run, and another one owns it now.
    """
    fence.check(journal.parent)
    stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
    try:
        _append(journal, json.dumps(stamped).encode() + b"\n")
    except OSError as error:
        _warn_once(f"{journal}: cannot be written ({error.strerror}); the run continues without")


def read(journal: Path) -> list[Entry]:
    """Read all entries.

    What a crash or a full disk left of a line is skipped, and so are values of another type than
    `Entry` says: readers of an entry may rely on its types.
    """
    try:
        return parse(journal.read_bytes())
    except FileNotFoundError:
        return []


def parse(content: bytes) -> list[Entry]:
    """Return the entries in the bytes of a journal, as `read` does."""
    return [entry for entry in map(_parse, content.split(b"\n")) if entry is not None]


def _append(journal: Path, line: bytes) -> None:
    file = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        whole = b"\n" + line if torn else line
        if (written := os.write(file, whole)) < len(whole):
            # What a nearly full disk took is not an entry; only this process writes at this time.
            os.ftruncate(file, os.fstat(file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    finally:
        os.close(file)


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    # Half a line, or the zeros that some file systems leave after a power cut.
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    return cast(Entry, {key: value for key, value in entry.items() if _is_valid(key, value)})


def _is_valid(key: str, value: object) -> bool:
    """Return whether a value has the type that `Entry` gives its key; other keys may have any."""
    if key == "job_id":
        # It is handed to scancel, where another word could be an option.
        return isinstance(value, str) and _JOB_ID.fullmatch(value) is not None
    types = _TYPES.get(key)
    return types is None or (isinstance(value, types) and type(value) is not bool)


@cache
def _warn_once(warning: str) -> None:
    print(warning, file=sys.stderr, flush=True)
