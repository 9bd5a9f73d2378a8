"""What is said of the files that were read: how many rows each gave, bad rows, and notes."""

import json
from pathlib import Path
from typing import NamedTuple

from llada_sft.data.rows.bad_row import SHOWN, BadRow, shortened
from llada_sft.errors import DataError
from llada_sft.sharding.folder import writing

# How many files with bad rows a message names.
_FILES_SHOWN = 5


class TooManyBadRowsError(DataError):
    """More rows were lost than the user allows: the shards would not be what was asked for."""


class FileCount(NamedTuple):
    """What one file gave."""

    file: Path
    num_rows: int
    num_bad: int

    @property
    def is_lost(self) -> bool:
        """Return whether there were rows, and all of them are bad."""
        return self.num_bad > 0 and self.num_rows == 0


class Findings:
    """What the readers of all files have to say.

    Args:
        path: The file that bad rows are written to, one by one. It is made with the first.

    Attributes:
        num_bad: Bad rows; they are skipped.
        first: The first of them.
        notes: What else the user should know, a line each.
        files: The files that were read to their end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_bad = 0
        self.first: list[BadRow] = []
        self.notes: list[str] = []
        self.files: list[FileCount] = []
        self._num_bad_before = 0

    def add_bad(self, row: BadRow) -> None:
        """Write a bad row down.

        Raises:
            DataError: There is no room.
        """
        row = row._replace(message=shortened(" ".join(row.message.split())))
        self.num_bad += 1
        if len(self.first) < SHOWN:
            self.first.append(row)
        line = json.dumps(row.to_json())
        with writing(self._path), self._path.open("a") as file:
            file.write(line + "\n")

    def note(self, path: Path, what: str) -> None:
        """Keep what is to be said of a file that was read otherwise than its name says."""
        self.notes.append(f"{path}: {what}")

    def end_file(self, path: Path, num_rows: int) -> None:
        """Count a file that was read to its end."""
        self.files.append(FileCount(path, num_rows, self.num_bad - self._num_bad_before))
        self._num_bad_before = self.num_bad

    def too_many(self, max_fraction: float) -> str | None:
        """Say which rows were lost, if they are too many; None if they are not."""
        lost = [count for count in self.files if count.is_lost]
        num_all = self.num_bad + sum(count.num_rows for count in self.files)
        if self.num_bad <= max_fraction * num_all and not lost:
            return None
        worst = sorted(self.files, key=lambda count: -count.num_bad)[:_FILES_SHOWN]
        shown = [*lost, *(count for count in worst if count.num_bad and not count.is_lost)]
        of_all = f"{self.num_bad:,} of {num_all:,} rows are bad"
        lines = [f"{of_all} (--max-bad-fraction {max_fraction})"]
        lines += [_share(count) for count in shown[:_FILES_SHOWN]]
        if len(lost) > _FILES_SHOWN:
            lines.append(f"... and all rows of {len(lost) - _FILES_SHOWN:,} more files")
        return "\n".join(lines)

    def keep_list(self, path: Path) -> None:
        """Move the list of bad rows to a place where it stays.

        Raises:
            DataError: It cannot be moved.
        """
        with writing(path):
            self._path.replace(path)


def _share(count: FileCount) -> str:
    if count.is_lost:
        rows = "its only row is" if count.num_bad == 1 else f"all {count.num_bad:,} rows are"
        return f"{count.file}: {rows} bad"
    return f"{count.file}: {count.num_bad:,} of {count.num_bad + count.num_rows:,} rows are bad"
