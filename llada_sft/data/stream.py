"""The rows of a rank's files, in a keyed random order, from any position.

1. `Cache.prepare` gives the index of a shard, where each non-blank line begins, and a plain local
   file that it is of: the shard itself, or what was made of it once.
2. `FileReader` reads row `permutation[i]` of its file: the permutation is keyed by
   (seed, epoch, file), so the state of a file is one integer.
3. `RowStream` draws the next file at random in proportion to the rows that it has left. The draw is
   keyed by the number of rows already drawn: the positions alone say how the stream goes on.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.cache import Cache
from llada_sft.data.draws import RowsLeft
from llada_sft.data.files import Shard, shard_name
from llada_sft.errors import DataError

# A longer line is never read whole: it is a bad row.
MAX_LINE_BYTES = 64 * 2**20
# A rank that has more files opens them again and again: a process may hold 1,024, others' included.
MAX_OPEN = 128


def shown_path(root: Path | str, file: str) -> str:
    """Name a shard of a folder or a URL as messages do."""
    return str(root / file) if isinstance(root, Path) else f"{root}/{file}"


class Row(NamedTuple):
    """One line of a shard: `line` counts from 1, `byte` from 0, in the text if it is compressed.

    `file` is relative to the dataset's folder: it keys noise and order. `root` is that folder or
    its URL, for messages. A line longer than MAX_LINE_BYTES has no `text`, but `num_bytes`.
    """

    file: str
    line: int
    byte: int
    text: bytes
    root: Path | str = Path()
    num_bytes: int | None = None

    @property
    def path(self) -> str:
        """The shard, as messages call it."""
        return shown_path(self.root, self.file)

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line} (byte {self.byte})"


class Pending(NamedTuple):
    """An example that was read, but waits: its place among those of its rank, and what it is."""

    place: int
    line: int
    part: int


class FilePosition(NamedTuple):
    """`row`: rows of the file's order that are read. `part`: examples of the next row that are.

    All of these are done but `pending`.
    """

    row: int
    part: int
    pending: tuple[Pending, ...] = ()


def _joined(*parts: object) -> bytes:
    return "\x1f".join(map(str, parts)).encode()


def _key(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(_joined(*parts), digest_size=8).digest(), "little")


class FileReader:
    """The rows of one file in the order of one epoch."""

    _file: IO[bytes] | None = None
    _descriptor = -1
    _num_links = 0

    def __init__(self, root: Path | str, shard: Shard, cache: Cache) -> None:
        self.root, self.shard, self.name = root, shard, shard_name(root, shard)
        self.index, self._text = cache.prepare(shard)
        self._order: NDArray[np.unsignedinteger] | range = range(len(self))

    def __len__(self) -> int:
        return len(self.index.starts)

    def start_epoch(self, seed: int, epoch: int, shuffle: bool) -> None:
        # Also lets go of the last epoch's: two need not be in memory at once.
        self._order = range(len(self))
        if shuffle:
            self._order = np.arange(len(self), dtype=np.min_scalar_type(len(self)))
            generator = np.random.Generator(np.random.Philox(_key(seed, epoch, self.name)))
            # The same as generator.permutation(len(self)), in half the memory.
            generator.shuffle(self._order)

    def read(self, position: int) -> Row:
        """Read the row at a position of the epoch's order."""
        return self._read(int(self._order[position]))

    def read_line(self, line: int) -> Row:
        lines = self.index.lines
        # Of the same type: searchsorted would make a copy of all lines in another one.
        return self._read(int(np.searchsorted(lines, lines.dtype.type(line))))

    def _read(self, number: int) -> Row:
        index = self.index
        start, num_bytes = index.starts.item(number), index.sizes.item(number)
        line, too_long = index.lines.item(number), num_bytes > MAX_LINE_BYTES
        try:
            size = self._open()
            text = b"" if too_long else os.pread(self._descriptor, num_bytes, start)
            if len(text) < num_bytes and not too_long:
                text = self._with_rest(text, start, num_bytes)
        except OSError as error:
            copy = "" if self._text == self.shard else f" (in the cache: {self._text})"
            raise DataError(f"{self.shard}{copy}: cannot be read: {error.strerror}") from None
        if size != index.size:
            raise self._changed(f"it has {size:,} bytes instead of {index.size:,}")
        if not (too_long or self._is_one_line(text, start + num_bytes)):
            raise self._changed(f"line {line} is no longer at byte {start}")
        return Row(self.name, line, start, text, self.root, num_bytes if too_long else None)

    def _open(self) -> int:
        """Open the text, if it is not open or its name is another file's now; return its size."""
        if self._file is not None:
            status = os.fstat(self._descriptor)
            if status.st_nlink == self._num_links:
                return status.st_size
            self.close()
        self._file = self._text.open("rb", buffering=0)
        self._descriptor = self._file.fileno()
        status = os.fstat(self._descriptor)
        self._num_links = status.st_nlink
        return status.st_size

    def close(self) -> None:
        """Close the text; to read a row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _with_rest(self, text: bytes, start: int, num_bytes: int) -> bytes:
        """Read on: one call may give less than there is."""
        while len(text) < num_bytes:
            more = os.pread(self._descriptor, num_bytes - len(text), start + len(text))
            if not more:
                break
            text += more
        return text

    def _changed(self, how: str) -> DataError:
        return DataError(f"{self.shard}: changed while it was read: {how}; start the run again")

    def _is_one_line(self, text: bytes, end: int) -> bool:
        """Whether the line end is where it was when the file was indexed, and only there."""
        line_end = text.find(b"\n")
        return line_end == len(text) - 1 or (line_end == -1 and end == self.index.size)


class RowStream:
    """The rows of one rank, epoch by epoch.

    Args:
        files: The rank's files.
        root: The folder that file names are relative to.
        seed: Keys the order.
        shuffle: False reads file after file, line after line.
        cache_dir: Where indexes and texts are kept; None is the default.
    """

    def __init__(
        self,
        files: Sequence[Shard],
        root: Path | str,
        seed: int,
        shuffle: bool,
        cache_dir: str | Path | None = None,
    ) -> None:
        cache = Cache(cache_dir)
        self._readers = [FileReader(root, shard, cache) for shard in files]
        self._seed, self._shuffle = seed, shuffle
        self._names = "\x1f".join(reader.name for reader in self._readers)

    @property
    def num_rows(self) -> int:
        return sum(len(reader) for reader in self._readers)

    def fingerprints(self) -> dict[str, str]:
        return {reader.name: reader.index.fingerprint for reader in self._readers}

    def start_positions(self) -> dict[str, FilePosition]:
        return {reader.name: FilePosition(0, 0) for reader in self._readers}

    def known_positions(self, positions: Mapping[str, FilePosition]) -> dict[str, FilePosition]:
        """Return the positions of these files; one that is not known counts as done.

        A file that was added after a checkpoint is thus read from the next epoch on.
        """
        return {
            reader.name: positions.get(reader.name, FilePosition(len(reader), 0))
            for reader in self._readers
        }

    def rows(self, epoch: int, positions: Mapping[str, FilePosition]) -> Iterator[Row]:
        """Yield what is left of an epoch after `positions`."""
        known = self.known_positions(positions)
        for reader in self._readers:
            reader.start_epoch(self._seed, epoch, self._shuffle)
        done = [known[reader.name].row for reader in self._readers]
        left = RowsLeft(
            [len(reader) - row for reader, row in zip(self._readers, done, strict=True)]
        )
        readers, last = self._readers, None
        crowded = len(readers) > MAX_OPEN
        try:
            for ticket in self._tickets(epoch, sum(done)):
                chosen = left.take(ticket % left.total)
                reader = readers[chosen]
                if crowded and last is not None and last != chosen:
                    readers[last].close()
                last = chosen
                yield reader.read(done[chosen])
                done[chosen] += 1
        finally:
            self._close()

    def _tickets(self, epoch: int, drawn: int) -> Iterator[int]:
        """Yield a number for each row that is left; modulo the rows left, it says which comes."""
        numbers = range(drawn, self.num_rows)
        # The first file that has rows left is the only one, or the next in line.
        if not self._shuffle or len(self._readers) == 1:
            yield from repeat(0, len(numbers))
            return
        start = hashlib.blake2b(_joined(self._seed, epoch, self._names, ""), digest_size=8)
        for number in numbers:
            hashed = start.copy()
            hashed.update(b"%d" % number)
            yield int.from_bytes(hashed.digest(), "little")

    def pending_rows(self, positions: Mapping[str, FilePosition]) -> list[tuple[Row, int]]:
        """Read the rows of pending examples again, in the order that they wait in.

        Returns:
            The row of each, and which of the row's examples it is.
        """
        known = self.known_positions(positions)
        waiting = [(one, reader) for reader in self._readers for one in known[reader.name].pending]
        # Those of several ranks have the same places: then the files' order decides.
        waiting.sort(key=lambda pair: pair[0].place)
        try:
            return [(reader.read_line(one.line), one.part) for one, reader in waiting]
        finally:
            self._close()

    def _close(self) -> None:
        for reader in self._readers:
            reader.close()
