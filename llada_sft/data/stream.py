"""The rows of a rank's files, in a keyed random order, from any position.

1. `index_lines` reads a file once: where each non-blank line begins, and a fingerprint.
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
_LINE_END = 0x0A
_BLANKS = np.frombuffer(b" \t\r\v\f", np.uint8)


@dataclass(frozen=True)
class Row:
    """One line of a shard: `line` counts from 1, `byte` from 0.

    `file` is relative to the dataset's folder: it keys noise and order. `root` is that folder, for
    messages.
    """

    file: str
    line: int
    byte: int
    text: bytes
    root: Path = Path()

    @property
    def where(self) -> str:
        return f"{self.root / self.file}:{self.line} (byte {self.byte})"


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


class LineIndex(NamedTuple):
    """Where the non-blank lines of a file begin (int64 [rows]) and their line numbers, from 1.

    `fingerprint` names the content of the whole file: its size and its CRC-32.
    """

    starts: NDArray[np.int64]
    lines: NDArray[np.int64]
    fingerprint: str


def index_lines(path: Path) -> LineIndex:
    """Find the lines of a file that are not blank.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            starts, first_bytes, fingerprint = _scan(file)
            keep = first_bytes != _LINE_END
            # Only a line that begins with a blank can be one.
            for number in np.flatnonzero(keep & np.isin(first_bytes, _BLANKS)):
                file.seek(starts[number])
                keep[number] = not file.readline().isspace()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return LineIndex(starts[keep], np.flatnonzero(keep) + 1, fingerprint)


def _scan(file: BinaryIO) -> tuple[NDArray[np.int64], NDArray[np.uint8], str]:
    """Return where every line begins, blank ones too, its first byte, and the fingerprint."""
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
    return np.concatenate(starts), np.concatenate(first_bytes), f"{size}-{checksum:08x}"


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
        return self._read(int(self._order[position]))

    def read_line(self, line: int) -> Row:
        return self._read(int(np.searchsorted(self.index.lines, line)))

    def _read(self, number: int) -> Row:
        start = int(self.index.starts[number])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                text = file.readline()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        return Row(self.name, int(self.index.lines[number]), start, text, self.root)


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

    def pending_rows(self, positions: Mapping[str, FilePosition]) -> list[tuple[Row, int]]:
        """Read the rows of pending examples again, in the order that they wait in.

        Returns:
            The row of each, and which of the row's examples it is.
        """
        known = self.known_positions(positions)
        waiting = [(one, reader) for reader in self._readers for one in known[reader.name].pending]
        # Those of several ranks have the same places: then the files' order decides.
        waiting.sort(key=lambda pair: pair[0].place)
        return [(reader.read_line(one.line), one.part) for one, reader in waiting]

    def _choose(self, left: NDArray[np.int64], epoch: int, drawn: int) -> int:
        if not self._shuffle:
            return int(np.flatnonzero(left)[0])
        ticket = _key(self._seed, epoch, self._names, drawn) % int(left.sum())
        return int(np.searchsorted(np.cumsum(left), ticket, side="right"))
