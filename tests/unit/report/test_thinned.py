"""Long curves are thinned, and still look the same."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.report.thinned import thinned

CURVES = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=400)


@given(values=CURVES, most=st.integers(5, 60))
def test_the_ends_the_peaks_and_the_gaps_stay(values: list[float | None], most: int) -> None:
    places = thinned(values, most)
    assert len(places) <= max(most, 0)
    assert places == sorted(set(places))
    assert places[0] == 0
    assert places[-1] == len(values) - 1
    known = [value for value in values if value is not None]
    kept = [values[place] for place in places]
    if known:
        assert min(known) in kept
        assert max(known) in kept
    assert (None in values) == (None in kept)


def test_a_short_curve_stays_whole() -> None:
    assert thinned([1.0, None, 3.0], 5) == [0, 1, 2]


@pytest.mark.parametrize("place", [1, 5000, 9998])
def test_one_peak_of_many_points_is_seen(place: int) -> None:
    values: list[float | None] = [math.sin(number / 100) for number in range(10_000)]
    values[place] = 50.0
    assert place in thinned(values, 100)
