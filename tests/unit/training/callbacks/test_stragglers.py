"""A rank that is always the slowest is warned of, once."""

import pytest

from llada_sft.training.callbacks.stragglers import SLOW_STEPS, Stragglers, is_slow
from llada_sft.training.consensus import Report
from llada_sft.training.nodes.own_time import OwnTime

NODES = ["node1", "node1", "node2"]
USUAL = Report(own_us=100_000, most_own_us=105_000, slowest_rank=1)


def slow(rank: int, most_us: int = 150_000) -> Report:
    return Report(own_us=100_000, most_own_us=most_us, slowest_rank=rank)


def warnings(*counts: Report, nodes: list[str] = NODES) -> list[str]:
    """Return the warnings of steps with these reports."""
    lines: list[str] = []
    callback = Stragglers(OwnTime(), nodes, lines.append)
    for step, one in enumerate(counts, 1):
        callback.see(one, step)
    return lines


def test_a_rank_that_is_always_slow_is_named_once() -> None:
    assert warnings(*[slow(2)] * (3 * SLOW_STEPS)) == [
        f"step {SLOW_STEPS}: the other ranks wait for rank 2 (node2): in {SLOW_STEPS} steps in a"
        " row it needed 1.50 times the median's time for what it does by itself (blocks, and"
        " waiting for data)"
    ]


def test_without_the_names_of_nodes() -> None:
    (line,) = warnings(*[slow(2)] * SLOW_STEPS, nodes=[])
    assert "wait for rank 2: in" in line


def test_another_slow_rank_is_named_too() -> None:
    lines = warnings(*[slow(2)] * SLOW_STEPS, *[slow(0)] * SLOW_STEPS, *[slow(2)] * SLOW_STEPS)
    assert ["rank 2" in line for line in lines] == [True, False]


@pytest.mark.parametrize("between", [USUAL, slow(1), Report()])
def test_the_steps_must_be_in_a_row(between: Report) -> None:
    half = [slow(2)] * (SLOW_STEPS - 1)
    assert warnings(*half, between, *half) == []


@pytest.mark.parametrize(
    ("own_us", "most_us", "expected"),
    [
        (100_000, 125_000, True),
        (100_000, 124_000, False),
        # Of small numbers, a part is noise.
        (1_000, 10_999, False),
        (1_000, 11_000, True),
        # Not known.
        (0, 50_000, False),
    ],
)
def test_what_is_slow(own_us: int, most_us: int, expected: bool) -> None:
    assert is_slow(Report(own_us=own_us, most_own_us=most_us)) is expected
