"""The rows of a rank's files, in a keyed random order, from any position.

1. `LineIndex` finds where each non-blank line of a file begins.
2. `FileReader` reads row `permutation[i]` of its file: the permutation is keyed by
   (seed, epoch, file), so the state of a file is one integer.
3. `RowStream` draws the next file at random in proportion to the rows that it has left. The draw is
   keyed by the number of rows already drawn: the positions alone say how the stream goes on.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.errors import DataError

_CHUNK_BYTES = 1 << 22
_BLANKS = b" \t\r\n"


@dataclass(frozen=True)
class Row:
    """One line of a shard: `line` counts from 1, `byte` from 0."""

    file: str
    line: int
    byte: int
    text: bytes

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line} (byte {self.byte})"


class FilePosition(NamedTuple):
    """`row`: rows of the file's order that are done. `part`: examples of the next row that are."""

    row: int
    part: int


class LineIndex(NamedTuple):
    """Where the non-blank lines of a file begin (int64 [rows]) and their line numbers, from 1."""

    starts: NDArray[np.int64]
    lines: NDArray[np.int64]


def _newlines(file: BinaryIO) -> NDArray[np.int64]:
    found, offset = [], 0
    while chunk := file.read(_CHUNK_BYTES):
        found.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 0x0A) + offset)
        offset += len(chunk)
    return np.concatenate(found) if found else np.empty(0, np.int64)


def index_lines(path: Path) -> LineIndex:
    """Find the lines of a file that are not blank.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            ends = _newlines(file)
            size = file.seek(0, 2)
            starts = np.concatenate([[0], ends + 1]).astype(np.int64)
            stops = np.concatenate([ends, [size]])
            keep = stops > starts
            # Only a very short line can consist of blanks alone without being looked at.
            for i in np.flatnonzero(keep & (stops - starts <= 16)):
                file.seek(starts[i])
                keep[i] = bool(file.read(int(stops[i] - starts[i])).strip(_BLANKS))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return LineIndex(starts[keep], np.flatnonzero(keep) + 1)


def fingerprint(path: Path) -> str:
    """Name a file's content by its size and both of its ends."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(1 << 16))
        file.seek(max(0, size - (1 << 16)))
        digest.update(file.read())
    return digest.hexdigest()


def _key(*parts: object) -> int:
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class FileReader:
    """The rows of one file in the order of one epoch."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
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
        start = int(self.index.starts[number])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                text = file.readline()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        return Row(self.name, int(self.index.lines[number]), start, text)


class RowStream:
    """The rows of one rank, epoch by epoch.

    Args:
        files: The rank's files.
        root: The folder that file names are relative to.
        seed: Keys the order.
        shuffle: False reads file after file, line after line.
    """

    def __init__(self, files: Sequence[Path], root: Path, seed: int, shuffle: bool) -> None:
        self._readers = [FileReader(path, str(path.relative_to(root))) for path in files]
        self._seed, self._shuffle = seed, shuffle
        self._names = "\x1f".join(reader.name for reader in self._readers)

    @property
    def num_rows(self) -> int:
        return sum(len(reader) for reader in self._readers)

    def fingerprints(self) -> dict[str, str]:
        return {reader.name: fingerprint(reader.path) for reader in self._readers}

    def start_positions(self) -> dict[str, FilePosition]:
        return {reader.name: FilePosition(0, 0) for reader in self._readers}

    def rows(self, epoch: int, positions: Mapping[str, FilePosition]) -> Iterator[Row]:
        """Yield what is left of an epoch after `positions`."""
        for reader in self._readers:
            reader.start_epoch(self._seed, epoch, self._shuffle)
        done = np.array([positions[reader.name].row for reader in self._readers], np.int64)
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
