"""Examples of several sources, mixed by weight; each source has epochs of its own.

On every rank, the next example is of the source that has given least for its weight. So the shares
are right at any time, not only on average, and follow from what was given: that is part of the
position of each file. A source that has made all of its epochs drops out; the others continue.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from llada_sft.data.examples.encode import Encode, Example
from llada_sft.data.examples.quarantine import Quarantine
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.steps.one_epoch import EpochRows
from llada_sft.data.steps.yields import RowsLeft

Unit = Literal["examples", "tokens"]


class SourceRows:
    """One source's examples through all of its epochs, on one rank.

    Args:
        weight: Its share, in proportion to the others'.
        epochs: Passes over its rows.
        stream: Its rows.
        encode: Makes their examples.
        quarantine: Takes its bad rows.
        positions: Of its files, each with the epoch that it is in.
    """

    def __init__(
        self,
        weight: float,
        epochs: int,
        stream: RowStream,
        encode: Encode,
        quarantine: Quarantine,
        positions: Mapping[str, FilePosition],
    ) -> None:
        self.weight, self._epochs, self._stream = weight, epochs, stream
        self._encode, self._quarantine = encode, quarantine
        self._counts = RowCounts()
        # What is done of each file, and what it has given; up to date after `_follow`.
        self._positions = dict(positions)
        self._sum_up()
        self._rows = self._epoch(
            min((position.epoch for position in positions.values()), default=0)
        )
        self.given = {
            "examples": sum(position.examples for position in positions.values()),
            "tokens": sum(position.tokens for position in positions.values()),
        }

    def examples(self) -> Iterator[Example]:
        # Its epochs may have been lowered below the one that it is in.
        while self._rows.epoch < self._epochs:
            for example in self._rows.examples():
                self._add(example)
                yield example
            if self._rows.epoch + 1 >= self._epochs:
                return
            self._counts += self._rows.take_counts()
            self._follow()
            self._positions = {
                name: position
                if position.epoch > self._rows.epoch
                else position.start_of_epoch(self._rows.epoch + 1)
                for name, position in self._positions.items()
            }
            self._sum_up()
            self._rows = self._epoch(self._rows.epoch + 1)

    def owns(self, file: str) -> bool:
        return file in self._positions

    def position(self, file: str) -> FilePosition:
        """Return what is done of a file, and what it has given."""
        self._follow()
        return self._positions[file]

    def take_moved(self) -> dict[str, FilePosition]:
        """Return the same of the files of which it has changed since the last call."""
        self._follow()
        moved = {name: self._positions[name] for name in self._moved}
        self._moved.clear()
        return moved

    @property
    def rows_done(self) -> int:
        """Rows that are done in all epochs, at most those of the present number of epochs."""
        self._follow()
        return min(self.num_rows, self._rows_done)

    @property
    def num_rows(self) -> int:
        """Rows of all epochs."""
        return self._stream.num_rows * self._epochs

    @property
    def left(self) -> RowsLeft:
        """What is left of all epochs."""
        return RowsLeft(self.num_rows - self.rows_done, self._given_parts)

    def take_counts(self) -> RowCounts:
        """Return what was counted since the last call."""
        counts, self._counts = self._counts + self._rows.take_counts(), RowCounts()
        return counts

    def _sum_up(self) -> None:
        """Count what all files have; from here on, the sums follow what changes."""
        self._moved = set(self._positions)
        self._rows_done = self._stream.rows_done(self._positions)
        self._given_parts = sum(position.part for position in self._positions.values())

    def _follow(self) -> None:
        """Take over what the epoch's rows have done since the last call."""
        for name, done in self._rows.take_moved().items():
            before = self._positions[name]
            # A file that is further than the others was already done when this epoch started.
            if before.epoch > self._rows.epoch:
                continue
            self._rows_done += done.row - before.row
            self._given_parts += done.part - before.part
            self._positions[name] = before._replace(row=done.row, part=done.part)
            self._moved.add(name)

    def _epoch(self, epoch: int) -> EpochRows:
        here = {
            name: position for name, position in self._positions.items() if position.epoch <= epoch
        }
        rows = self._stream.fill_missing_positions(here)
        return EpochRows(self._stream, self._encode, self._quarantine, epoch, rows)

    def _add(self, example: Example) -> None:
        num_tokens = len(example.input_ids)
        self._positions[example.file] = self._positions[example.file].with_given(num_tokens)
        self._moved.add(example.file)
        self.given["examples"] += 1
        self.given["tokens"] += num_tokens


class MixedRows:
    """The examples of all sources of a rank, with the position of what is done.

    Args:
        sources: At least one.
        unit: What the weights share out.
    """

    # Sources have epochs; the mixture is one.
    epoch = 0

    def __init__(self, sources: Sequence[SourceRows], unit: Unit) -> None:
        self._sources, self._unit = sources, unit

    def examples(self) -> Iterator[Example]:
        unfinished = [(source, source.examples()) for source in self._sources]
        while unfinished:
            chosen = min(unfinished, key=lambda pair: pair[0].given[self._unit] / pair[0].weight)
            example = next(chosen[1], None)
            if example is None:
                unfinished.remove(chosen)
            else:
                yield example

    def position(self, file: str) -> FilePosition:
        """Return what is done of a file of one of the sources."""
        return next(source.position(file) for source in self._sources if source.owns(file))

    def take_moved(self) -> dict[str, FilePosition]:
        """Return the same of the files of which it has changed since the last call."""
        return {
            name: position
            for source in self._sources
            for name, position in source.take_moved().items()
        }

    @property
    def rows_done(self) -> int:
        return sum(source.rows_done for source in self._sources)

    @property
    def num_rows(self) -> int:
        return sum(source.num_rows for source in self._sources)

    @property
    def left(self) -> list[RowsLeft]:
        """What is left of each source, in all of its epochs."""
        return [source.left for source in self._sources]

    def take_counts(self) -> RowCounts:
        """Return what was counted since the last call."""
        return sum((source.take_counts() for source in self._sources), start=RowCounts())
