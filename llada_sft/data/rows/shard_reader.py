"""The rows of one shard, in the order of one epoch, from any position.

Rows are read ahead, some at a time: what a call costs is then paid once for many. What is read
ahead is given out as it was read; the next time, a file that has changed since it was indexed is
noticed.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import chain, repeat
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.rows.order import KeyedPermutation
from llada_sft.data.sources import NamedShard
from llada_sft.data.storage.cache import Cache
from llada_sft.errors import DataError

# A longer line is never read whole: it is a bad row.
MAX_LINE_BYTES = 64 * 2**20
_LINE_ENDS = repeat(b"\n")
Numbers = NDArray[np.integer]


class Row(NamedTuple):
    """One line of a shard: `line` counts from 1, `byte` from 0, in the text if it is compressed.

    `file` is the shard's name, which keys noise and order; `path` is what messages call it. A line
    longer than MAX_LINE_BYTES has no `text`, but `num_bytes`.
    """

    file: str
    line: int
    byte: int
    text: bytes
    path: str
    num_bytes: int | None = None

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line} (byte {self.byte})"


# What Row._make does, without a function of Python's in between: this runs for every row of a run.
_make_row: Callable[[tuple[object, ...]], Row] = partial(tuple.__new__, Row)


class ReadAhead(NamedTuple):
    """How far to read ahead in one file.

    Attributes:
        rows: Whose places in the file are looked up together.
        num_bytes: Of these, read together; or one row, if it is longer.
        stay_open: Whether the file is kept open from one time to the next.
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
        return chain.from_iterable(self._read_ahead(order, position, ahead))

    def _read_ahead(
        self, order: KeyedPermutation | None, position: int, ahead: ReadAhead
    ) -> Iterator[list[Row]]:
        for begin in range(position, len(self), ahead.rows):
            some = slice(begin, min(begin + ahead.rows, len(self)))
            numbers = np.arange(some.start, some.stop) if order is None else order[some]
            for part in self._parts(numbers, ahead.num_bytes):
                read = self.read(part)
                if not ahead.stay_open:
                    self.close()
                yield read

    def line(self, line: int) -> Row:
        """Read one line; the file stays open."""
        lines = self.index.lines
        # Of the same type: searchsorted would make a copy of all lines in another one.
        return self.read(np.array([np.searchsorted(lines, lines.dtype.type(line))]))[0]

    def read(self, numbers: Numbers) -> list[Row]:
        """Read some of the file's rows, which are numbered from 0."""
        index = self.index
        starts, lines = index.starts[numbers].tolist(), index.lines[numbers].tolist()
        sizes = index.sizes[numbers].tolist()
        texts, are_lines = self._texts(starts, sizes)
        # Compared all at once, for the same reason as above.
        if not are_lines and list(map(bytes.find, texts, _LINE_ENDS)) != [n - 1 for n in sizes]:
            self._check(texts, starts, sizes, lines)
        too_long: Iterable[int | None] = repeat(None)
        if max(sizes) > MAX_LINE_BYTES:
            too_long = [size if size > MAX_LINE_BYTES else None for size in sizes]
        fields = zip(repeat(self.name), lines, starts, texts, repeat(self.path), too_long)
        return list(map(_make_row, fields))

    def _parts(self, numbers: Numbers, num_bytes: int) -> Iterator[Numbers]:
        """Divide rows into parts of at most so many bytes, or one row."""
        sizes = self.index.sizes[numbers].astype(np.int64)
        ends = np.where(sizes > MAX_LINE_BYTES, 0, sizes).cumsum()
        begin = done = 0
        while begin < len(numbers):
            end = max(begin + 1, int(ends.searchsorted(done + num_bytes, "right")))
            yield numbers[begin:end]
            begin, done = end, int(ends[end - 1])

    def _texts(self, starts: Sequence[int], sizes: Sequence[int]) -> tuple[list[bytes], bool]:
        """Read so many bytes at each place, and say whether they are known to be lines."""
        try:
            file = self._open()
            read = _read_at(file, starts, sizes)
            size = os.fstat(file).st_size
        except OSError as error:
            copy = "" if self._text == self.shard else f" (in the cache: {self._text})"
            raise DataError(f"{self.shard}{copy}: cannot be read: {error.strerror}") from None
        if size != self.index.size:
            raise self._changed(f"it has {size:,} bytes instead of {self.index.size:,}")
        return read

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

    def _check(
        self,
        texts: Sequence[bytes],
        starts: Sequence[int],
        sizes: Sequence[int],
        lines: Sequence[int],
    ) -> None:
        """Check that the line ends are where they were when the file was indexed, and only there.

        Raises:
            DataError: they are not.
        """
        for text, start, size, line in zip(texts, starts, sizes, lines, strict=True):
            line_end = text.find(b"\n")
            last = line_end == -1 and len(text) == size and start + size == self.index.size
            if not (last or line_end == size - 1 or size > MAX_LINE_BYTES):
                raise self._changed(f"line {line} is no longer at byte {start}")

    def _changed(self, how: str) -> DataError:
        return DataError(f"{self.shard}: changed while it was read: {how}; start the run again")


def _read_at(file: int, starts: Sequence[int], sizes: Sequence[int]) -> tuple[list[bytes], bool]:
    span = starts[-1] + sizes[-1] - starts[0]
    # Rows that follow each other, as they do in the order of the file.
    if span == sum(sizes) <= MAX_LINE_BYTES and starts == sorted(starts):
        text = _read_whole(file, starts[0], span)
        # To look for the line ends once, and in C, is less than to cut and then to look.
        lines = BytesIO(text).readlines()
        if list(map(len, lines)) == sizes and text.endswith(b"\n"):
            return lines, True
        begins = [start - starts[0] for start in starts]
        return [text[at : at + size] for at, size in zip(begins, sizes, strict=True)], False
    texts = [
        os.pread(file, size, start) if size <= MAX_LINE_BYTES else b""
        for start, size in zip(starts, sizes, strict=True)
    ]
    if list(map(len, texts)) != sizes:
        texts = [
            text if len(text) == size or size > MAX_LINE_BYTES else _read_whole(file, start, size)
            for text, start, size in zip(texts, starts, sizes, strict=True)
        ]
    return texts, False


def _read_whole(file: int, start: int, num_bytes: int) -> bytes:
    """Read on where one call gives less than there is."""
    text = b""
    while len(text) < num_bytes:
        more = os.pread(file, num_bytes - len(text), start + len(text))
        if not more:
            break
        text += more
    return text
