"""How often each noise level is drawn: uniformly, or in proportion to how large the loss is there.

The loss of an example depends on its level: where little is masked, the weight 1/t is large; where
much is masked, each token is hard. If level v has the density p(v), its loss ℓ(v) counts
ℓ(v) / p(v), and the expectation is that of the uniform draw whatever p is. Its variance is least
where p is proportional to the root of the mean of ℓ² at each level. That mean is estimated in bins,
from the steps that were trained: from their losses before the division by p, so that the estimate
does not depend on p.

- Old steps count less and less: the loss falls, and its shape changes.
- A bin of which little is known is near the mean of all bins.
- A part of the density stays uniform, so that no weight is larger than 1 / UNIFORM_PART.

What the steps add are integers. Sums of integers do not depend on the order in which ranks and
examples come, so that all ranks, and a resumed run, have the same density to the last bit.

Source: "Bringing Stability to Diffusion" (arXiv 2511.18159), which fits such a density to losses
measured before training; here it is fitted while training.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

NUM_BINS = 16
# Of what is logged by level.
SHOWN_BINS = 8
UNIFORM_PART = 0.2
# What the sums of earlier steps are multiplied by at each step.
DECAY = 0.99
# How many examples of the mean of all bins each bin starts with.
_PRIOR_EXAMPLES = 4.0
# Squared losses are counted in this unit, and none counts more than the limit: then the sum of half
# a million examples fits into 64 bits.
_UNIT = 2.0**-20
_LARGEST_SQUARE = 2.0**24


@dataclass(frozen=True)
class LevelDensity:
    """A density on [0, 1) that is constant in each of equally wide bins.

    Attributes:
        heights: Of each bin; their mean is 1, and each is positive.
    """

    heights: tuple[float, ...]

    @cached_property
    def _edges(self) -> list[float]:
        """The chance of all levels below each edge of a bin, the last one 1."""
        total = math.fsum(self.heights)
        edges = [0.0, *(below / total for below in accumulate(self.heights))]
        edges[-1] = 1.0
        return edges

    def level(self, u: float) -> float:
        """Return the level below which a share u of all draws lies, in [0, 1)."""
        number = min(bisect_right(self._edges, u), len(self.heights)) - 1
        start, end = self._edges[number], self._edges[number + 1]
        within = (u - start) / (end - start)
        return min((number + within) / len(self.heights), _BELOW_ONE)

    def at(self, level: float) -> float:
        """Return the density at a level."""
        number = bin_of(level, len(self.heights))
        return (self._edges[number + 1] - self._edges[number]) * len(self.heights)

    def chance(self, start: float, end: float) -> float:
        """Return how likely a level in [start, end) is."""
        return self._below(end) - self._below(start)

    def _below(self, level: float) -> float:
        number = bin_of(level, len(self.heights))
        start, end = self._edges[number], self._edges[number + 1]
        return start + (end - start) * (level * len(self.heights) - number)


_BELOW_ONE = math.nextafter(1.0, 0.0)


def bin_of(level: float, num_bins: int = NUM_BINS) -> int:
    """Return the bin of a level; 1 belongs to the last one."""
    return min(int(level * num_bins), num_bins - 1)


def level_sums(losses: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Sum up what a step's examples say of the levels.

    Args:
        losses: Level and loss of each; those with a loss that is not finite do not count.

    Returns:
        For each bin the number of its examples, then for each bin the sum of their squared losses.
    """
    counts, squares = [0] * NUM_BINS, [0] * NUM_BINS
    for level, loss in losses:
        if math.isfinite(loss):
            counts[bin_of(level)] += 1
            squares[bin_of(level)] += round(min(loss * loss, _LARGEST_SQUARE) / _UNIT)
    return (*counts, *squares)


@dataclass(frozen=True)
class LevelStatistics:
    """What is known of the losses by level: examples and squared losses of each bin, decayed."""

    counts: tuple[float, ...] = (0.0,) * NUM_BINS
    squares: tuple[float, ...] = (0.0,) * NUM_BINS

    def after_step(self, sums: Sequence[int]) -> "LevelStatistics":
        """Add what `level_sums` says of a step, summed over all ranks."""
        before = (*self.counts, *self.squares)
        units = [1.0] * NUM_BINS + [_UNIT] * NUM_BINS
        after = [
            DECAY * old + unit * new for old, unit, new in zip(before, units, sums, strict=True)
        ]
        return LevelStatistics(tuple(after[:NUM_BINS]), tuple(after[NUM_BINS:]))

    def density(self) -> LevelDensity:
        """Return the density to draw levels from; the uniform one as long as nothing is known."""
        total, num_examples = math.fsum(self.squares), math.fsum(self.counts)
        if not total > 0:
            return LevelDensity((1.0,) * NUM_BINS)
        mean = total / num_examples
        roots = [
            math.sqrt((square + _PRIOR_EXAMPLES * mean) / (count + _PRIOR_EXAMPLES))
            for square, count in zip(self.squares, self.counts, strict=True)
        ]
        mean_root = math.fsum(roots) / NUM_BINS
        return LevelDensity(
            tuple(UNIFORM_PART + (1 - UNIFORM_PART) * root / mean_root for root in roots)
        )
