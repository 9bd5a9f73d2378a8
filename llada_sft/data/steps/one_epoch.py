"""The examples of an epoch's rows: what becomes of each row is counted, and a bad one set aside."""

from collections.abc import Iterator

from llada_sft.data.examples.encode import Encode, Example
from llada_sft.data.examples.quarantine import BadRowError, Quarantine
from llada_sft.data.examples.row_counts import GOOD_ROW, RowCounts
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.row import Row
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.steps.yields import RowsLeft


class EpochRows:
    """The examples of an epoch's rows; what becomes of each row is counted once.

    What is done is known file by file. Once an example was given, it counts as done. Sums over the
    files are kept, not made: there may be many files, and each step asks.
    """

    def __init__(
        self,
        stream: RowStream,
        encode: Encode,
        quarantine: Quarantine,
        epoch: int,
        positions: dict[str, FilePosition],
    ) -> None:
        self._stream, self._encode, self._quarantine = stream, encode, quarantine
        self.epoch, self._positions = epoch, positions
        # Whose position was not taken yet: at first, that of all files.
        self._moved = set(positions)
        self.rows_done = sum(position.row for position in positions.values())
        self._given_parts = sum(position.part for position in positions.values())
        self._good, self._others = 0, RowCounts()
        # Different rows of the run so far: from the second epoch on, all.
        self._read = stream.num_rows if epoch > 0 else self.rows_done

    def examples(self) -> Iterator[Example]:
        for row in self._stream.rows(self.epoch, self._positions):
            done = self._positions[row.file]
            examples = self._examples_of(row, done)
            for part in range(done.part, len(examples)):
                is_last = part + 1 == len(examples)
                self._move(row.file, done.after_row() if is_last else done._replace(part=part + 1))
                yield examples[part]
            if done.part >= len(examples):
                self._move(row.file, done.after_row())
            self._read += self.epoch == 0
            self._quarantine.judge(self._read)
        self._quarantine.judge(self._read, end_of_epoch=True)

    def position(self, file: str) -> FilePosition:
        """Return what is done of a file."""
        return self._positions[file]

    def take_moved(self) -> dict[str, FilePosition]:
        """Return what is done of the files of which it has changed since the last call."""
        moved = {name: self._positions[name] for name in self._moved}
        self._moved.clear()
        return moved

    def _move(self, file: str, position: FilePosition) -> None:
        before = self._positions[file]
        self.rows_done += position.row - before.row
        self._given_parts += position.part - before.part
        self._positions[file] = position
        self._moved.add(file)

    @property
    def num_rows(self) -> int:
        return self._stream.num_rows

    @property
    def left(self) -> list[RowsLeft]:
        """What is left of the epoch, for the single source."""
        return [RowsLeft(self.num_rows - self.rows_done, self._given_parts)]

    def take_counts(self) -> RowCounts:
        """Return what was counted since the last call."""
        counts = self._others + RowCounts(rows=self._good)
        self._good, self._others = 0, RowCounts()
        return counts

    def _examples_of(self, row: Row, done: FilePosition) -> list[Example]:
        try:
            encoded = self._encode(row, self.epoch)
        except BadRowError as error:
            self._others += RowCounts(rows=1, bad={error.reason: 1})
            self._quarantine.add(error, self.epoch, done.row)
            return []
        # A row that was started before a checkpoint was counted then.
        if done.part == 0:
            if encoded.counts is GOOD_ROW:
                self._good += 1
            else:
                self._others += encoded.counts
        return encoded.examples
