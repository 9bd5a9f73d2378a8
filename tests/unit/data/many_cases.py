"""Random runs of the stream: ranks, files, steps, interruptions; every row once, and an end.

    python -m tests.unit.data.many_cases --cases 10000 [--first 0]

A case is a number: it keys everything random in it, so a case that fails can be run alone. Files
are stand-ins: names and row counts, with the real order and the real draw. What
ranks agree on is played by one loop, as `training/feed.py` does it: one step at a time on every
rank, empty where a rank has no rows left, until none has. An interruption loses what was prepared
and not trained, goes through `DataState` and JSON, and goes on with another number of ranks.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.rows import stream
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.row import Row
from llada_sft.data.rows.shard_reader import FileReader
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.shards import assign_files
from llada_sft.data.sources import NamedShard, name_shards
from llada_sft.data.storage.line_index import LineIndex
from llada_sft.training.checkpoint.data_state import DataState

MAX_RANKS, MAX_FILES, MAX_INTERRUPTIONS, EPOCHS = 64, 200, 12, 2
Step = tuple[list[Row], dict[str, FilePosition]]


@dataclass(frozen=True)
class Case:
    """What a number stands for."""

    number: int
    sizes: dict[str, int]
    shuffle: bool

    @staticmethod
    def of(number: int) -> "Case":
        random_ = random.Random(number)
        num_files = random_.randint(1, MAX_FILES)
        # Seldom large, often empty; the mean must let 10,000 cases end.
        large, scale = random_.random() < 0.1, random_.choice((0, 1, 5, 20))
        sizes = [random_.choice((0, scale, random_.randint(0, scale))) for _ in range(num_files)]
        if large:
            sizes[random_.randrange(num_files)] = random_.randint(1000, 5000)
        names = {f"{i:03}.jsonl": size for i, size in enumerate(sizes)}
        return Case(number, names, random_.random() < 0.8)


class MemoryFile(FileReader):
    """A file that is nothing but a number of rows."""

    sizes: ClassVar[dict[str, int]] = {}

    def __init__(self, named: NamedShard, cache: object) -> None:
        self.name = self.path = named.name
        lines = np.arange(1, self.sizes[self.name] + 1)
        self.index = LineIndex(lines, lines, lines, 0, f"{len(lines)}-0")

    def read(self, numbers: NDArray[np.integer]) -> list[Row]:
        return [Row(self.name, line, 0, b"", self.name) for line in (numbers + 1).tolist()]


def play(case: Case) -> int:
    """Play a case to its end.

    Returns:
        The number of interruptions.

    Raises:
        AssertionError: a row came never or twice, or the run does not end.
    """
    random_ = random.Random(f"play {case.number}")
    trained: Counter[tuple[int, str, int]] = Counter()
    num_rows = EPOCHS * sum(case.sizes.values())
    chance = random_.choice((0.0, 0.05, 0.3))
    interruptions, state = -1, None
    with patch.object(stream, "FileReader", MemoryFile):
        MemoryFile.sizes = case.sizes
        while interruptions < 0 or state is not None:
            interruptions += 1
            # The last of so many attempts is let through.
            of_this = chance if interruptions < MAX_INTERRUPTIONS else 0.0
            state = _attempt(case, random_, state, of_this, trained)
    expected = {
        (epoch, name, line)
        for epoch in range(EPOCHS)
        for name, size in case.sizes.items()
        for line in range(1, size + 1)
    }
    assert trained.total() == num_rows, f"{trained.total()} rows trained of {num_rows}"
    assert trained.keys() == expected, "a row came never or twice"
    return interruptions


def _attempt(
    case: Case,
    random_: random.Random,
    state: DataState | None,
    chance: float,
    trained: Counter[tuple[int, str, int]],
) -> DataState | None:
    """Train from a state to the end, or to an interruption, whose state is returned."""
    files = [Path(name) for name in case.sizes]
    world_size = random_.randint(1, min(MAX_RANKS, len(files)))
    owned = [assign_files(files, rank, world_size) for rank in range(world_size)]
    streams = [RowStream(name_shards(mine, Path()), case.number, case.shuffle) for mine in owned]
    for epoch in range(0 if state is None else state.epoch, EPOCHS):
        starts = [
            one.start_positions() if state is None else one.fill_missing_positions(state.positions)
            for one in streams
        ]
        state = None
        ranks = [
            _steps(one, epoch, start, random.Random(random_.random()))
            for one, start in zip(streams, starts, strict=True)
        ]
        done = starts
        # Each turn trains a row or is the last; one more would be a hang.
        for _ in range(sum(case.sizes.values()) + 1):
            steps = [next(rank, None) for rank in ranks]
            if not any(steps):
                break
            for rank, step in enumerate(steps):
                if step is not None:
                    trained.update((epoch, row.file, row.line) for row in step[0])
                    done[rank] = step[1]
            if random_.random() < chance:
                return _saved(epoch, done, streams)
        else:
            raise AssertionError("the epoch does not end")
    return None


def _steps(
    rows: RowStream, epoch: int, start: dict[str, FilePosition], random_: random.Random
) -> Iterator[Step]:
    """Give a rank's rows by steps of random sizes, each with the position after it."""
    positions, step, size = dict(start), [], random_.randint(1, 40)
    for row in rows.rows(epoch, start):
        at = positions[row.file]
        positions[row.file] = at._replace(row=at.row + 1)
        step.append(row)
        if len(step) == size:
            yield step, dict(positions)
            step, size = [], random_.randint(1, 40)
    if step:
        yield step, dict(positions)


def _saved(epoch: int, done: list[dict[str, FilePosition]], streams: list[RowStream]) -> DataState:
    pairs = [(at, one.fingerprints()) for at, one in zip(done, streams, strict=True)]
    written = json.dumps(DataState.merge(epoch, pairs).to_json())
    state = DataState.from_json(json.loads(written))
    for one in streams:
        assert state.changed(one.fingerprints()) == []
    return state


def main() -> None:
    """Play the cases that are asked for, and say how many there were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    began, interruptions, rows = time.monotonic(), 0, 0
    for number in range(arguments.first, arguments.first + arguments.cases):
        case = Case.of(number)
        try:
            interruptions += play(case)
        except AssertionError as error:
            raise SystemExit(f"case {number}: {error}") from error
        rows += EPOCHS * sum(case.sizes.values())
        if (number + 1) % 500 == 0:
            print(f"case {number}: {time.monotonic() - began:.0f} s", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{arguments.cases} cases, {rows} rows, {interruptions} interruptions in {seconds:.0f} s:"
        " every row once per epoch, no hang"
    )


if __name__ == "__main__":
    main()
