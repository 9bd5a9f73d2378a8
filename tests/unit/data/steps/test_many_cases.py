"""Promises 1 to 3 of the data plane over random runs; `many_cases.py` says what a case is."""

import pytest

from tests.unit.data.many_cases import Case, play

CASES = 300


@pytest.mark.parametrize("first", range(0, CASES, 50))
def test_every_row_once_per_epoch_whatever_happens(first: int) -> None:
    interruptions = [play(Case.of(number)) for number in range(first, first + 50)]
    assert max(interruptions) > 1
