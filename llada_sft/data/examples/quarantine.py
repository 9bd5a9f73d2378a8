"""Bad rows: written down, and past a limit the end of the run.

Each bad row of a run is one line of `quarantine/rank_N.jsonl`, also if a later epoch or a resumed
run meets it again: file, line and byte, a reason (one word) and a message; epoch and row say when
it was first met, `row` being its place in that epoch's order of its file. The fingerprint is the
file's: what is known of a file that was changed since is not held against the new one.

The share of bad rows is that of one rank: different bad rows over different rows, both among what
it has read since the start of the run. What precedes a checkpoint is known from the files
here, so a resumed run judges as one that was never interrupted.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llada_sft.data.rows.bad_row import SHOWN, BadRow, shortened
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.row import Row
from llada_sft.errors import DataError

# bad_record: the hook raised a DataError; hook_raised: it raised anything else;
# hook_returned: what it returned cannot be used.
Reason = Literal[
    "not_json",
    "not_utf8",
    "nul_byte",
    "line_too_long",
    "bad_record",
    "hook_raised",
    "hook_returned",
]
# With fewer rows than this, only the end of an epoch is judged: the first row may be a bad one.
MIN_ROWS = 100
REMEDY = "llada-sft check finds all such rows, data.max_bad_fraction allows some"


class BadRowError(DataError):
    """One row cannot be used."""

    def __init__(self, row: Row, reason: Reason, message: str) -> None:
        # What a hook raises may quote halves of surrogate pairs, which no log or file can hold.
        message = " ".join(message.splitlines()).encode(errors="backslashreplace").decode()
        super().__init__(f"{row.where}: {message}")
        self.reason: Reason = reason
        self.bad_row = BadRow(row.path, row.line, row.byte, reason, shortened(message))


class _Entry(NamedTuple):
    """A line of the file."""

    bad_row: BadRow
    epoch: int
    row: int
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        met = {"epoch": self.epoch, "row": self.row, "fingerprint": self.fingerprint}
        return {**self.bad_row.to_json(), **met}


# The keys of a line, and their types.
_TYPES = {
    "file": str,
    "line": int,
    "byte": int,
    "reason": str,
    "message": str,
    "epoch": int,
    "row": int,
    "fingerprint": str,
}


class Quarantine:
    """The bad rows of one rank.

    Args:
        path: The file; None writes nothing down.
        max_bad_fraction: More than this share of bad rows ends the run.
        fingerprints: Of the rank's files, by their names.
        positions: Where the run resumes in each, by the same names.
        shown_paths: What messages call each, by the same names.
    """

    def __init__(
        self,
        path: Path | None,
        max_bad_fraction: float,
        fingerprints: Mapping[str, str],
        positions: Mapping[str, FilePosition],
        shown_paths: Mapping[str, str],
    ) -> None:
        self._path, self._max_bad_fraction = path, max_bad_fraction
        done_until = {
            shown_paths[name]: (position.epoch, position.row)
            for name, position in positions.items()
        }
        self._fingerprints = {
            shown_paths[name]: fingerprint for name, fingerprint in fingerprints.items()
        }
        known = [
            entry
            for entry in ([] if path is None else _read_all(path))
            if self._fingerprints.get(entry.bad_row.file) == entry.fingerprint
        ]
        self._written = {_place(entry.bad_row) for entry in known}
        done = [
            entry.bad_row
            for entry in known
            if (entry.epoch, entry.row) < done_until[entry.bad_row.file]
        ]
        self._met = set(map(_place, done))
        self._first = done[:SHOWN]

    def add(self, error: BadRowError, epoch: int, row: int) -> None:
        """Write a bad row down, if it is not yet.

        Raises:
            DataError: The row itself, where no bad row is allowed; or the file cannot be written.
        """
        bad_row = error.bad_row
        place = _place(bad_row)
        if place not in self._met and len(self._first) < SHOWN:
            self._first.append(bad_row)
        self._met.add(place)
        if self._path is not None and place not in self._written:
            _append(self._path, _Entry(bad_row, epoch, row, self._fingerprints[bad_row.file]))
            self._written.add(place)
        if self._max_bad_fraction == 0:
            raise DataError(f"{bad_row}; {REMEDY}")

    def judge(self, rows_read: int, end_of_epoch: bool = False) -> None:
        """Compare the share of bad rows with what is allowed.

        Args:
            rows_read: Different rows that this rank has read since the start of the run.
            end_of_epoch: Also judge few rows.

        Raises:
            DataError: There are too many; shows the first five.
        """
        if rows_read < (1 if end_of_epoch else MIN_ROWS):
            return
        bad = len(self._met)
        if bad / rows_read > self._max_bad_fraction:
            where = "" if self._path is None else f"{self._path}: "
            raise DataError(
                f"{where}{bad:,} of {rows_read:,} rows are bad, "
                f"data.max_bad_fraction allows {self._max_bad_fraction:g}; "
                "llada-sft check finds them all; the first:\n" + "\n".join(map(str, self._first))
            )


def _place(bad_row: BadRow) -> tuple[str, int]:
    return bad_row.file, bad_row.number


def _append(path: Path, entry: _Entry) -> None:
    line = json.dumps(entry.to_json()).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _read_all(path: Path) -> Iterator[_Entry]:
    """Read what all ranks have written: the run may have had another number of them.

    Raises:
        DataError: A file cannot be read.
    """
    try:
        if path.exists():
            _drop_cut_line(path)
        contents = [file.read_bytes() for file in sorted(path.parent.glob("rank_*.jsonl"))]
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    for content in contents:
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            entry = _parse(line)
            if entry is not None:
                yield entry


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a crash cut short, so that the next one is whole."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _parse(line: bytes) -> _Entry | None:
    """Read a line; None if somebody has edited it, or it was damaged."""
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
        return None
    if not all(isinstance(fields[key], kind) for key, kind in _TYPES.items()):
        return None
    bad_row = BadRow(
        fields["file"], fields["line"], fields["byte"], fields["reason"], fields["message"]
    )
    return _Entry(bad_row, fields["epoch"], fields["row"], fields["fingerprint"])
