"""How far files are read: what is done of each file, and which examples wait.

A position travels inside the step that it belongs to, and a checkpoint holds one for each file of
all ranks. So it is the position of what was *trained*, not of what was read ahead.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self


class ExampleKey(NamedTuple):
    """Which example it is. Together with the seed, it keys the example's noise."""

    file: str
    line: int
    part: int
    epoch: int


class Pending(NamedTuple):
    """An example that was read, but waits: its place among those of its rank, and what it is."""

    place: int
    line: int
    part: int
    epoch: int = 0


class FilePosition(NamedTuple):
    """What is read of a file: all of it is done except `pending`.

    Attributes:
        row: Rows of the file's order.
        part: Examples of the next row.
        pending: Examples that wait.
        epoch: The epoch of all of these; with several sources, each file has its own, otherwise it
            is that of the run.
        examples, tokens: What the file has given to the mixture.
    """

    row: int
    part: int
    pending: tuple[Pending, ...] = ()
    epoch: int = 0
    examples: int = 0
    tokens: int = 0

    def start_of_epoch(self, epoch: int) -> Self:
        """Return the start of another epoch."""
        return self._replace(row=0, part=0, epoch=epoch)

    def after_row(self) -> Self:
        """Return the start of the next row."""
        # `_replace` takes five times as long, and each row comes here.
        return type(self)(self.row + 1, 0, *self[2:])

    def with_given(self, num_tokens: int) -> Self:
        """Count one more example for the mixture."""
        return self._replace(examples=self.examples + 1, tokens=self.tokens + num_tokens)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the position that `_asdict` gave to a checkpoint; further fields are ignored."""
        known = {name: fields[name] for name in cls._fields}
        return cls(**{**known, "pending": tuple(Pending(*entry) for entry in fields["pending"])})


Positions = dict[str, FilePosition]


class Keyed(Protocol):
    """An `ExampleKey`, or an example that has one."""

    @property
    def file(self) -> str: ...

    @property
    def line(self) -> int: ...

    @property
    def part(self) -> int: ...

    @property
    def epoch(self) -> int: ...


def fill_missing_positions(
    positions: Mapping[str, FilePosition], num_rows: Mapping[str, int]
) -> Positions:
    """Return the positions of the given files; a file without one counts as done.

    A file that was added after a checkpoint is thus read from the next epoch on.

    Args:
        positions: Of these files, or of some of them.
        num_rows: The rows of each file.
    """
    epoch = min((position.epoch for position in positions.values()), default=0)
    return {
        name: positions.get(name, FilePosition(rows, 0, epoch=epoch))
        for name, rows in num_rows.items()
    }


def restart_files(positions: Mapping[str, FilePosition], names: Iterable[str]) -> Positions:
    """Return positions at which some files start their epoch again, and nothing of them waits."""
    restarted = {}
    for name in names:
        position = positions.get(name, FilePosition(0, 0))
        restarted[name] = position.start_of_epoch(position.epoch)._replace(pending=())
    return {**positions, **restarted}


def with_waiting(read: Mapping[str, FilePosition], waiting: Sequence[Keyed]) -> Positions:
    """Return positions that include the examples that were read, but wait.

    Args:
        read: What is read of some files, among them those of all examples that wait.
        waiting: The examples, in the order in which they wait.
    """
    pending: dict[str, list[Pending]] = {name: [] for name in read}
    for place, one in enumerate(waiting):
        pending[one.file].append(Pending(place, one.line, one.part, one.epoch))
    return {
        name: position._replace(pending=tuple(pending[name])) for name, position in read.items()
    }
