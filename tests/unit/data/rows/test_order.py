"""Permutations by a key: each is one, any part stands alone, and all come up equally often."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.rows.order import KeyedPermutation, hash_numbers, keys_of


@given(num_rows=st.integers(0, 3000), key=st.integers(0, 2**70))
@settings(deadline=None)
def test_every_number_comes_once(num_rows: int, key: int) -> None:
    order = KeyedPermutation(num_rows, key)[:]
    assert len(KeyedPermutation(num_rows, key)) == num_rows
    assert sorted(order.tolist()) == list(range(num_rows))


@given(num_rows=st.integers(1, 500), data=st.data())
def test_a_part_is_that_of_the_whole(num_rows: int, data: st.DataObject) -> None:
    order = KeyedPermutation(num_rows, "a", 1)
    begin = data.draw(st.integers(0, num_rows))
    end = data.draw(st.integers(begin, num_rows))
    assert order[begin:end].tolist() == order[:].tolist()[begin:end]


def test_a_number_beyond_32_bits_comes_back() -> None:
    num_rows = 10**15
    part = KeyedPermutation(num_rows, 0)[num_rows - 5000 :]
    assert len(set(part.tolist())) == 5000
    assert part.min() >= 0 and part.max() < num_rows
    assert abs(part.mean() / num_rows - 0.5) < 5 * np.sqrt(1 / 12 / 5000)


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5])
def test_every_order_of_a_few_rows_is_as_likely(num_rows: int) -> None:
    num_draws = 12_000
    found = Counter(
        tuple(KeyedPermutation(num_rows, "any", key)[:].tolist()) for key in range(num_draws)
    )
    orders = list(permutations(range(num_rows)))
    expected = num_draws / len(orders)
    # Pearson's statistic has this mean, and twice it as variance.
    freedom = len(orders) - 1
    statistic = sum((found[order] - expected) ** 2 / expected for order in orders)
    assert found.keys() == set(orders)
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("num_rows", [50, 999, 1025, 20_000])
def test_neighbours_part(num_rows: int) -> None:
    """Where a row comes to stand says nothing of where the next one does."""
    many = [KeyedPermutation(num_rows, key)[:] / num_rows - 0.5 for key in range(100)]
    for distance in (1, 2, round(num_rows**0.5)):
        products = [float(np.mean(order * np.roll(order, distance))) for order in many]
        # Each product of two independent uniform numbers has the variance 1/144.
        error = 1 / 12 / np.sqrt(num_rows * len(many))
        assert abs(np.mean(products) + 1 / 12 / num_rows) < 5 * error


@pytest.mark.parametrize("num_rows", [300, 1500])
def test_cycles_are_as_many_as_in_any_shuffle(num_rows: int) -> None:
    """Fixed points: one is expected, with variance one. Cycles: the harmonic sum of the rows."""
    num_draws, rows = 1000, np.arange(num_rows)
    orders = [KeyedPermutation(num_rows, "cycles", key)[:] for key in range(num_draws)]
    fixed = [int(np.sum(order == rows)) for order in orders]
    assert abs(np.mean(fixed) - 1) < 5 / np.sqrt(num_draws)
    assert abs(np.var(fixed) - 1) < 0.3
    expected = float(np.sum(1 / (rows + 1)))
    counts = [num_cycles(order.tolist()) for order in orders]
    assert abs(np.mean(counts) - expected) < 5 * np.sqrt(expected / num_draws)


def num_cycles(order: list[int]) -> int:
    seen, count = [False] * len(order), 0
    for start in range(len(order)):
        count += not seen[start]
        while not seen[start]:
            seen[start] = True
            start = order[start]
    return count


def test_keys_and_hashes_are_those_of_earlier_versions() -> None:
    """Checkpoints hold places in the orders that they make."""
    keys = keys_of(2, 7, 0, "a.jsonl")
    assert keys.tolist() == [15511325532920876758, 7161230039580276173]
    assert hash_numbers(np.arange(2, dtype=np.uint64), keys[0]).tolist() == [
        6636808431277258018,
        11100808200283794365,
    ]
    assert KeyedPermutation(10, 7, 0, "a.jsonl")[:].tolist() == [1, 7, 3, 9, 5, 2, 6, 0, 8, 4]
    assert KeyedPermutation(2000, 7, 0, "a.jsonl")[:6].tolist() == [43, 173, 348, 855, 1688, 1039]
