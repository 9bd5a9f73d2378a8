"""The rows of a rank's files, in a keyed random order, from any position.

1. `index_lines` reads a file once: where each non-blank line begins and ends, and a fingerprint.
2. `FileReader` reads row `permutation[i]` of its file: the permutation is keyed by
   (seed, epoch, file), so the state of a file is one integer.
3. `RowStream` draws the next file at random in proportion to the rows that it has left. The draw is
   keyed by the number of rows already drawn: the positions alone say how the stream goes on.
"""

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.errors import DataError

_CHUNK_BYTES = 1 << 22
# A longer line is never read whole: it is a bad row.
MAX_LINE_BYTES = 64 * 2**20
_LINE_END = 0x0A
_BLANKS = np.frombuffer(b" \t\r\v\f", np.uint8)


@dataclass(frozen=True)
class Row:
    """One line of a shard: `line` counts from 1, `byte` from 0.

    `file` is relative to the dataset's folder: it keys noise and order. `root` is that folder, for
    messages. A line longer than MAX_LINE_BYTES has no `text`, but `num_bytes`.
    """

    file: str
    line: int
    byte: int
    text: bytes
    root: Path = Path()
    num_bytes: int | None = None

    @property
    def where(self) -> str:
        return f"{self.root / self.file}:{self.line} (byte {self.byte})"


class FilePosition(NamedTuple):
    """`row`: rows of the file's order that are done. `part`: examples of the next row that are."""

    row: int
    part: int


class LineIndex(NamedTuple):
    """Where the non-blank lines of a file begin and end (int64 [rows]), and their numbers, from 1.

    `size` is the file's, in bytes; `fingerprint` names its whole content: size and CRC-32.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]
    size: int
    fingerprint: str


def index_lines(path: Path) -> LineIndex:
    """Find the lines of a file that are not blank.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            starts, first_bytes, size, fingerprint = _scan(file)
            ends = np.append(starts, size)[1:]
            keep = first_bytes != _LINE_END
            # Only a line that begins with a blank can be one.
            for number in np.flatnonzero(keep & np.isin(first_bytes, _BLANKS)):
                keep[number] = not _is_blank(file, int(starts[number]), int(ends[number]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return LineIndex(starts[keep], ends[keep], np.flatnonzero(keep) + 1, size, fingerprint)


def _is_blank(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    sizes = (min(_CHUNK_BYTES, end - at) for at in range(start, end, _CHUNK_BYTES))
    return all(file.read(size).isspace() for size in sizes)


def _scan(file: BinaryIO) -> tuple[NDArray[np.int64], NDArray[np.uint8], int, str]:
    """Return where every line begins, blank ones too, its first byte; size and fingerprint."""
    starts, first_bytes = [np.empty(0, np.int64)], [np.empty(0, np.uint8)]
    size, checksum, line_begins = 0, 0, True
    while chunk := file.read(_CHUNK_BYTES):
        data = np.frombuffer(chunk, np.uint8)
        found = np.flatnonzero(data == _LINE_END) + 1
        if line_begins:
            found = np.insert(found, 0, 0)
        line_begins = chunk.endswith(b"\n")
        if line_begins:
            found = found[:-1]
        starts.append(found + size)
        first_bytes.append(data[found])
        checksum = zlib.crc32(chunk, checksum)
        size += len(chunk)
    return np.concatenate(starts), np.concatenate(first_bytes), size, f"{size}-{checksum:08x}"


def _key(*parts: object) -> int:
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class FileReader:
    """The rows of one file in the order of one epoch."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path, self.name = root, path, str(path.relative_to(root))
        self.index = index_lines(path)
        self._order: NDArray[np.int64] = np.arange(len(self.index.starts))

    def __len__(self) -> int:
        return len(self.index.starts)

    def start_epoch(self, seed: int, epoch: int, shuffle: bool) -> None:
        if shuffle:
            generator = np.random.Generator(np.random.Philox(_key(seed, epoch, self.name)))
            self._order = generator.permutation(len(self))

    def read(self, position: int) -> Row:
        """Read the row at a position of the epoch's order."""
        number = self._order[position]
        start, end = int(self.index.starts[number]), int(self.index.ends[number])
        line, too_long = int(self.index.lines[number]), end - start > MAX_LINE_BYTES
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(start)
                text = b"" if too_long else file.read(end - start)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        if size != self.index.size:
            raise self._changed(f"it has {size:,} bytes instead of {self.index.size:,}")
        if not (too_long or self._is_one_line(text, end)):
            raise self._changed(f"line {line} is no longer at byte {start}")
        return Row(self.name, line, start, text, self.root, end - start if too_long else None)

    def _changed(self, how: str) -> DataError:
        return DataError(f"{self.path}: changed while it was read: {how}; start the run again")

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
    """

    def __init__(self, files: Sequence[Path], root: Path, seed: int, shuffle: bool) -> None:
        self._readers = [FileReader(root, path) for path in files]
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
        done = np.array([known[reader.name].row for reader in self._readers], np.int64)
        sizes = np.array([len(reader) for reader in self._readers], np.int64)
        while (left := sizes - done).sum() > 0:
            chosen = self._choose(left, epoch, int(done.sum()))
            yield self._readers[chosen].read(int(done[chosen]))
            done[chosen] += 1

    def _choose(self, left: NDArray[np.int64], epoch: int, drawn: int) -> int:
        if not self._shuffle:
            return int(np.flatnonzero(left)[0])
        ticket = _key(self._seed, epoch, self._names, drawn) % int(left.sum())
        return int(np.searchsorted(np.cumsum(left), ticket, side="right"))
