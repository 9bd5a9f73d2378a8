"""The rows of a rank's files, in a keyed random order, from any position.

1. `Cache.prepare` gives the index of a shard, where each non-blank line starts, and a plain local
   file that it is of: the shard itself, or what was made of it once.
2. `FileReader` reads its file in the order of a `KeyedPermutation`: that is keyed by
   (seed, epoch, file) and any part of it can be worked out, so the state of a file is one integer.
3. `RowStream` draws the next file at random in proportion to the rows that it has left. The draw is
   keyed by the number of rows already drawn: the positions alone say how the stream continues.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from llada_sft.data.rows.file_draws import draw_files
from llada_sft.data.rows.order import KeyedPermutation, hash_numbers, keys_of
from llada_sft.data.rows.position import (
    FilePosition,
    Pending,
    Positions,
    fill_missing_positions,
)
from llada_sft.data.rows.row import Row
from llada_sft.data.rows.shard_reader import FileReader, ReadAhead
from llada_sft.data.sources import NamedShard
from llada_sft.data.storage.cache import Cache

# A rank that has more files opens them again and again: a process may hold 1,024, others' included.
MAX_OPEN = 128
# Of one file, and of all files of a rank together. So few bytes of a file stay in the processor's
# cache until they are used.
_ROWS_AHEAD, _ALL_ROWS_AHEAD = 1024, 2**17
_BYTES_AHEAD, _ALL_BYTES_AHEAD = 2**17, 2**25
_NUM_TICKETS = 1024
# A place after those of all examples that wait.
_AFTER_ALL = 2**62


def _read_ahead(num_files: int) -> ReadAhead:
    return ReadAhead(
        rows=max(1, min(_ROWS_AHEAD, _ALL_ROWS_AHEAD // num_files)),
        num_bytes=min(_BYTES_AHEAD, _ALL_BYTES_AHEAD // num_files),
        stay_open=num_files <= MAX_OPEN,
    )


class RowStream:
    """The rows of one rank, epoch by epoch.

    Args:
        shards: The rank's.
        seed: Keys the order.
        shuffle: False reads file after file, line after line.
        cache_dir: Where indexes and texts are kept; None is the default.

    Attributes:
        num_rows: Of an epoch.
    """

    def __init__(
        self,
        shards: Sequence[NamedShard],
        seed: int,
        shuffle: bool,
        cache_dir: str | Path | None = None,
    ) -> None:
        cache = Cache(cache_dir)
        self._readers = [FileReader(shard, cache) for shard in shards]
        self._seed, self._shuffle = seed, shuffle
        self.num_rows = sum(map(len, self._readers))

    @property
    def shown_paths(self) -> dict[str, str]:
        """What messages call each file, by its name."""
        return {reader.name: reader.path for reader in self._readers}

    def rows_done(self, positions: Mapping[str, FilePosition]) -> int:
        """Count the rows that were read in all epochs."""
        known = [(reader, positions[reader.name]) for reader in self._readers]
        return sum(position.epoch * len(reader) + position.row for reader, position in known)

    def fingerprints(self) -> dict[str, str]:
        return {reader.name: reader.index.fingerprint for reader in self._readers}

    def start_positions(self, epoch: int = 0) -> Positions:
        return {reader.name: FilePosition(0, 0, epoch=epoch) for reader in self._readers}

    def fill_missing_positions(self, positions: Mapping[str, FilePosition]) -> Positions:
        """Return the positions of these files; a file without one counts as done."""
        return fill_missing_positions(
            positions, {reader.name: len(reader) for reader in self._readers}
        )

    def rows(self, epoch: int, positions: Mapping[str, FilePosition]) -> Iterator[Row]:
        """Yield what is left of an epoch after `positions`."""
        known = self.fill_missing_positions(positions)
        done = [known[reader.name].row for reader in self._readers]
        rows_left = [len(reader) - row for reader, row in zip(self._readers, done, strict=True)]
        ahead = _read_ahead(max(1, len(self._readers)))
        rows = [
            reader.rows(self._order(epoch, reader), row, ahead)
            for reader, row in zip(self._readers, done, strict=True)
        ]
        try:
            if self._shuffle and len(rows) > 1:
                for file in draw_files(rows_left, self._tickets(epoch, sum(done))):
                    yield next(rows[file])
            else:
                yield from chain.from_iterable(rows)
        finally:
            self._close()

    def _order(self, epoch: int, reader: FileReader) -> KeyedPermutation | None:
        if not self._shuffle:
            return None
        return KeyedPermutation(len(reader), self._seed, epoch, reader.name)

    def _tickets(self, epoch: int, drawn: int) -> Iterator[int]:
        """Yield a number for each row that is left; modulo the rows left, it says which comes."""
        num_rows = self.num_rows
        (key,) = keys_of(1, self._seed, epoch, *(reader.name for reader in self._readers), "")
        for begin in range(drawn, num_rows, _NUM_TICKETS):
            numbers = np.arange(begin, min(begin + _NUM_TICKETS, num_rows), dtype=np.uint64)
            yield from hash_numbers(numbers, key).tolist()

    def sample(self, num_rows: int) -> Iterator[Row]:
        """Yield a sample of rows, spread over all files, and the same at each call.

        All rows, file after file, are divided into `num_rows` equal parts, and one row of each part
        is drawn by a key: with a fixed distance, rows of a regular pattern could all be alike.
        """
        ends = np.cumsum([len(reader) for reader in self._readers]).tolist()
        total = ends[-1] if ends else 0
        count = min(num_rows, total)
        (key,) = keys_of(1, self._seed, "sample", *(reader.name for reader in self._readers))
        draws = (hash_numbers(np.arange(count, dtype=np.uint64), key) >> np.uint64(32)).tolist()
        file = 0
        try:
            for part, draw in enumerate(draws):
                begin, end = part * total // count, (part + 1) * total // count
                number = begin + draw % (end - begin)
                while number >= ends[file]:
                    self._readers[file].close()
                    file += 1
                reader = self._readers[file]
                yield reader.read(np.array([number - ends[file] + len(reader)]))[0]
        finally:
            self._close()

    def half_done(self, name: str, position: FilePosition, epoch: int) -> Pending | None:
        """Return the whole row of a file of which some examples were read, but not all."""
        reader = next((candidate for candidate in self._readers if candidate.name == name), None)
        if reader is None or position.part == 0 or position.row >= len(reader):
            return None
        order = self._order(epoch, reader)
        number = position.row if order is None else int(order[position.row : position.row + 1][0])
        return Pending(_AFTER_ALL, int(reader.index.lines[number]), 0, epoch)

    def pending_rows(self, positions: Mapping[str, FilePosition]) -> list[tuple[Pending, Row]]:
        """Read the rows of pending examples again, file after file."""
        known = self.fill_missing_positions(positions)
        try:
            return [
                (row, reader.line(row.line))
                for reader in self._readers
                for row in known[reader.name].pending
            ]
        finally:
            self._close()

    def _close(self) -> None:
        for reader in self._readers:
            reader.close()
