"""The rows of one shard, in the order of one epoch, from any position.

A few rows are read ahead, so that a rank with more files than it may keep open opens each of them
seldom. A file that has changed since it was indexed is detected by the next read.
"""

import os
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.rows.order import KeyedPermutation
from llada_sft.data.rows.row import MAX_LINE_BYTES, Row
from llada_sft.data.sources import NamedShard
from llada_sft.data.storage.cache import Cache
from llada_sft.errors import DataError


class ReadAhead(NamedTuple):
    """How far to read ahead in one file.

    Attributes:
        rows: Rows whose places in the file are looked up together.
        num_bytes: Bytes of these that are read together; always one row at least.
        stay_open: Whether the file is kept open from one read to the next.
    """

    rows: int
    num_bytes: int
    stay_open: bool


class FileReader:
    """The rows of one file in the order of one epoch."""

    _file: IO[bytes] | None = None
    _num_links = 0

    def __init__(self, named: NamedShard, cache: Cache) -> None:
        self.name, self.shard = named.name, named.shard
        self.path = str(named.shard)
        self.index, self._text = cache.prepare(named.shard)

    def __len__(self) -> int:
        return len(self.index.starts)

    def rows(
        self, order: KeyedPermutation | None, position: int, ahead: ReadAhead
    ) -> Iterator[Row]:
        """Yield the rows from a position of an order on; None is the order of the file."""
        for start in range(position, len(self), ahead.rows):
            places = slice(start, min(start + ahead.rows, len(self)))
            numbers = np.arange(places.start, places.stop) if order is None else order[places]
            sizes = self.index.sizes[numbers].astype(np.int64)
            ends = np.where(sizes > MAX_LINE_BYTES, 0, sizes).cumsum()
            part = 0
            while part < len(numbers):
                room = ahead.num_bytes + (int(ends[part - 1]) if part else 0)
                next_part = max(part + 1, int(ends.searchsorted(room, "right")))
                rows = self.read(numbers[part:next_part])
                if not ahead.stay_open:
                    self.close()
                yield from rows
                part = next_part

    def line(self, line: int) -> Row:
        """Read one line; the file stays open."""
        lines = self.index.lines
        # Of the same type: searchsorted would make a copy of all lines in another one.
        return self.read(np.array([np.searchsorted(lines, lines.dtype.type(line))]))[0]

    def read(self, numbers: NDArray[np.integer]) -> list[Row]:
        """Read some of the file's rows, which are numbered from 0.

        Raises:
            DataError: The file cannot be read, or has changed since it was indexed.
        """
        columns = (self.index.starts, self.index.sizes, self.index.lines)
        entries = list(zip(*(column[numbers].tolist() for column in columns), strict=True))
        try:
            file = self._open()
            texts = [_read_at(file, start, size) for start, size, _ in entries]
            file_size = os.fstat(file).st_size
        except OSError as error:
            copy = "" if self._text == self.shard else f" (in the cache: {self._text})"
            raise DataError(f"{self.shard}{copy}: cannot be read: {error.strerror}") from None
        if file_size != self.index.size:
            raise self._changed(f"it has {file_size:,} bytes instead of {self.index.size:,}")
        rows = []
        for (start, size, line), text in zip(entries, texts, strict=True):
            too_long = size if size > MAX_LINE_BYTES else None
            newline = text.find(b"\n")
            # The last line of a file may have no newline.
            is_last = newline == -1 and len(text) == size and start + size == file_size
            if not (too_long or newline == size - 1 or is_last):
                raise self._changed(f"line {line} is no longer at byte {start}")
            rows.append(Row(self.name, line, start, text, self.path, too_long))
        return rows

    def _open(self) -> int:
        """Open the text, if it is not open or its name is another file's now."""
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink != self._num_links:
            self.close()
        if self._file is None:
            self._file = self._text.open("rb", buffering=0)
            self._num_links = os.fstat(self._file.fileno()).st_nlink
        return self._file.fileno()

    def close(self) -> None:
        """Close the text; to read a row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _changed(self, how: str) -> DataError:
        return DataError(f"{self.shard}: changed while it was read: {how}; start the run again")


def _read_at(file: int, start: int, size: int) -> bytes:
    """Read a row, also where one call gives less than there is; a row that is too long is not."""
    if size > MAX_LINE_BYTES:
        return b""
    text = os.pread(file, size, start)
    while len(text) < size and (more := os.pread(file, size - len(text), start + len(text))):
        text += more
    return text
