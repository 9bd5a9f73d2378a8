"""Steps of rows, estimated from a sample: the sample itself, and the arithmetic by hand."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.rows.stream import RowStream
from llada_sft.data.steps.local_step import StepSize
from llada_sft.data.steps.yields import RowsLeft, RowYield, StepEstimate
from tests.unit.data.stepping import dataset, write

pytestmark = pytest.mark.usefixtures("no_tokenizer")


@pytest.mark.parametrize(
    ("yields", "left", "waiting", "steps"),
    [
        # One example a row, four a step.
        ([(10, 10, 50)], [(8, 0)], 0, 2),
        ([(10, 10, 50)], [(9, 0)], 0, 3),
        ([(10, 10, 50)], [(0, 0)], 0, 0),
        ([(10, 10, 50)], [(7, 0)], 1, 2),
        ([(10, 10, 50)], [(8, 0)], 1, 3),
        # Three a row, of which the next row has given two already.
        ([(2, 6, 50)], [(3, 0)], 0, 3),
        ([(2, 6, 50)], [(3, 2)], 0, 2),
        ([(2, 6, 50)], [(3, 100)], 0, 0),
        # One of three rows makes one.
        ([(9, 3, 15)], [(25, 0)], 0, 3),
        # Two sources, 5 and 4.5 examples.
        ([(1, 1, 5), (2, 3, 9)], [(5, 0), (3, 0)], 0, 3),
    ],
)
def test_padded_by_hand(
    yields: list[tuple[int, int, int]],
    left: list[tuple[int, int]],
    waiting: int,
    steps: int,
) -> None:
    estimate = StepEstimate(tuple(RowYield(*each) for each in yields), 4)
    assert estimate.steps([RowsLeft(*each) for each in left], waiting) == steps


def test_packed_by_hand() -> None:
    """60 tokens a step; rows of two examples of ten tokens, and of one of five."""
    estimate = StepEstimate((RowYield(3, 6, 60), RowYield(6, 6, 30)), 4, 60)
    assert estimate.steps([RowsLeft(6), RowsLeft(0)]) == 2
    assert estimate.steps([RowsLeft(6), RowsLeft(1)]) == 3
    # An example that waits counts as the mean of all: 7.5 tokens.
    assert estimate.steps([RowsLeft(2, 1), RowsLeft(2)], waiting=2) == 1
    assert estimate.steps([RowsLeft(2, 1), RowsLeft(2)], waiting=3) == 2
    assert not estimate.is_exact


def test_exact_is_one_padded_example_a_row() -> None:
    assert StepEstimate((RowYield(8, 8, 80), RowYield(3, 3, 7)), 4).is_exact
    assert not StepEstimate((RowYield(8, 8, 80), RowYield(3, 2, 7)), 4).is_exact
    assert not StepEstimate((RowYield(8, 8, 80),), 4, 60).is_exact


@given(files=st.lists(st.integers(0, 12), min_size=1, max_size=4), num_rows=st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_a_sample_is_spread_over_the_rows(
    tmp_path_factory: pytest.TempPathFactory, files: list[int], num_rows: int
) -> None:
    config = write(tmp_path_factory.mktemp("rows"), [[1] * size for size in files])
    stream = dataset(config, StepSize(1, 1))._sources[0][1]
    rows = [(row.file, row.line) for row in stream.sample(num_rows)]
    every = [(f"{name}.jsonl", line + 1) for name, size in enumerate(files) for line in range(size)]
    count = min(num_rows, len(every))
    assert len(rows) == len(set(rows)) == count
    # One of each part.
    places = [every.index(row) for row in rows]
    for part, place in enumerate(places):
        assert part * len(every) // count <= place < (part + 1) * len(every) // count
    assert rows == [(row.file, row.line) for row in stream.sample(num_rows)]


def test_rows_that_alternate_are_all_in_a_sample(tmp_path: Path) -> None:
    """Of every second row two examples: a sample of every second row would see one kind."""
    config = write(tmp_path, [[0, 2] * 400])
    sampled = dataset(config, StepSize(1, 1))
    sampled.know_yields(None, 200)
    ((rows, examples, _),) = next(iter(sampled)).yields
    assert rows == 200
    assert 150 < examples < 250


def test_each_file_is_closed_before_the_next_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, [[1] * 3] * 5)
    stream: RowStream = dataset(config, StepSize(1, 1))._sources[0][1]
    for _ in stream.sample(100):
        assert sum(reader._file is not None for reader in stream._readers) == 1
    assert all(reader._file is None for reader in stream._readers)


@pytest.mark.parametrize("rows", [[1, 1, 1], [0, 1, 0], [1, 1, 0, 0, 0], [0], [3, 0, 0]])
def test_a_rank_knows_when_no_example_follows(tmp_path: Path, rows: list[int]) -> None:
    steps = list(dataset(write(tmp_path, [rows]), StepSize(2, 1), epochs=2))
    for epoch in (0, 1):
        own = [step for step in steps if step.epoch == epoch and step.num_examples]
        assert [step.steps_left > 0 for step in own] == [True] * (len(own) - 1) + [False] * (
            len(own) > 0
        )
    assert all(step.steps_left == 0 for step in steps if step.end_of_epoch)


COUNTS = st.integers(1, 600)
SOURCES = st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, st.integers(0, 40)), min_size=1)


@settings(max_examples=300, deadline=None)
@given(SOURCES.filter(lambda sources: len(sources) < 5), st.integers(0, 64), COUNTS)
def test_whole_numbers_give_what_fractions_give(
    sources: list[tuple[int, int, int, int, int]], waiting: int, per_step: int
) -> None:
    yields = tuple(RowYield(*source[:3]) for source in sources)
    left = [RowsLeft(*source[3:]) for source in sources]
    examples = [
        max(Fraction(0), Fraction(each.examples, each.rows) * of.rows - of.given_examples)
        for each, of in zip(yields, left, strict=True)
    ]
    padded = StepEstimate(yields, per_step).steps(left, waiting)
    assert padded == math.ceil((sum(examples) + waiting) / per_step)
    mean = Fraction(sum(each.tokens for each in yields), sum(each.examples for each in yields))
    tokens = sum(
        count * Fraction(each.tokens, each.examples)
        for count, each in zip(examples, yields, strict=True)
    )
    packed = StepEstimate(yields, 1, tokens_per_step=per_step).steps(left, waiting)
    assert packed == math.ceil((tokens + waiting * mean) / per_step)
