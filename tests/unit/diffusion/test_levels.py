"""The density of noise levels: a distribution for any losses, fitted to their root mean square."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.diffusion.levels import (
    DECAY,
    NUM_BINS,
    UNIFORM_PART,
    LevelDensity,
    LevelStatistics,
    bin_of,
    level_sums,
)

LOSSES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.floats(allow_nan=True, allow_infinity=True)),
    max_size=30,
)
HEIGHTS = st.lists(st.floats(0.05, 20), min_size=NUM_BINS, max_size=NUM_BINS)


def normalised(heights: list[float]) -> LevelDensity:
    mean = statistics.fmean(heights)
    return LevelDensity(tuple(height / mean for height in heights))


@given(steps=st.lists(LOSSES, max_size=4))
def test_any_losses_make_a_density_with_bounded_weights(
    steps: list[list[tuple[float, float]]],
) -> None:
    known = LevelStatistics()
    for losses in steps:
        known = known.after_step(level_sums(losses))
    heights = known.density().heights
    assert statistics.fmean(heights) == pytest.approx(1)
    assert min(heights) >= UNIFORM_PART
    assert all(math.isfinite(height) for height in heights)


def test_nothing_known_is_uniform() -> None:
    assert LevelStatistics().density().heights == (1.0,) * NUM_BINS
    nothing = level_sums([(0.5, math.nan), (0.1, math.inf), (0.2, 0.0)])
    assert sum(nothing) == 1
    assert LevelStatistics().after_step(nothing).density().heights == (1.0,) * NUM_BINS


# One in the middle of each bin.
LEVELS = [(number + 0.5) / NUM_BINS for number in range(NUM_BINS)]


def test_the_density_follows_the_root_mean_square() -> None:
    """Losses of 5 and 1 in the first bin, 1 in the others: what counts is the square."""
    known = LevelStatistics()
    for _ in range(500):
        others = [(level, 1.0) for level in LEVELS[1:]]
        known = known.after_step(level_sums([*others, *others, (0.01, 5.0), (0.01, 1.0)]))
    roots = [math.sqrt(13), *[1.0] * (NUM_BINS - 1)]
    expected = [
        UNIFORM_PART + (1 - UNIFORM_PART) * root / statistics.fmean(roots) for root in roots
    ]
    assert known.density().heights == pytest.approx(expected, rel=0.02)


def test_a_bin_of_which_nothing_is_known_is_as_all_bins_together() -> None:
    known = LevelStatistics().after_step(level_sums([(0.01, 8.0)] * 100))
    assert known.density().heights == pytest.approx([1.0] * NUM_BINS)


def test_old_steps_fade() -> None:
    ones = [(level, 1.0) for level in LEVELS]
    known = LevelStatistics().after_step(level_sums([(0.99, 8.0)] * 100 + ones * 100))
    before = known.density().heights[-1]
    for _ in range(700):
        known = known.after_step(level_sums(ones))
    assert before > 2
    assert known.density().heights[-1] < 1.1
    assert known.counts[0] == pytest.approx(1 / (1 - DECAY), rel=0.01)


def test_the_order_of_examples_and_ranks_does_not_matter() -> None:
    losses = [(independent / 97 % 1, 0.1 * independent) for independent in range(200)]
    whole = level_sums(losses)
    parts = [level_sums(losses[rank::3][::-1]) for rank in range(3)]
    assert whole == tuple(map(sum, zip(*parts, strict=True)))


def test_one_loss_cannot_overflow_the_sums() -> None:
    sums = level_sums([(0.5, 1e30)] * 1000)
    assert 0 < max(sums) < 2**63 // 400


@given(heights=HEIGHTS, u=st.floats(0, 1, exclude_max=True))
def test_levels_are_the_quantiles(heights: list[float], u: float) -> None:
    density = normalised(heights)
    level = density.level(u)
    assert 0 <= level < 1
    assert density.chance(0.0, level) == pytest.approx(u, abs=1e-9)
    assert density.at(level) == pytest.approx(density.heights[bin_of(level)])
    assert density.chance(0.0, 1.0) == pytest.approx(1)


def test_the_uniform_density_leaves_levels_as_they_are() -> None:
    density = LevelDensity((1.0,) * NUM_BINS)
    for u in (0.0, 0.1, 0.123456789, 0.5, 1 - 2**-53):
        assert density.level(u) == pytest.approx(u, abs=1e-15)
    assert density.level(1 - 2**-53) < 1


def test_the_last_level_belongs_to_the_last_bin() -> None:
    assert (bin_of(0.0), bin_of(1.0), bin_of(1 - 2**-53)) == (0, NUM_BINS - 1, NUM_BINS - 1)
