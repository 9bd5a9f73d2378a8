"""How long prompts and responses are: a few numbers and a histogram."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHARES = (50, 90, 99)


@dataclass(frozen=True)
class Lengths:
    """The lengths of many things, in tokens.

    Attributes:
        mean: Of all.
        longest: Of all.
        percentiles: The length that 50, 90 and 99 % do not exceed.
        histogram: (most tokens, how many are longer than the bin before and at most that long).
    """

    mean: float
    longest: int
    percentiles: dict[int, int]
    histogram: list[tuple[int, int]]


def summarize(lengths: NDArray[np.integer]) -> Lengths | None:
    """Summarize lengths; None if there are none."""
    if not len(lengths):
        return None
    longest = int(lengths.max())
    values = np.percentile(lengths, _SHARES, method="inverted_cdf").astype(int).tolist()
    return Lengths(
        float(lengths.mean(dtype=np.float64)),
        longest,
        dict(zip(_SHARES, values, strict=True)),
        _histogram(lengths, longest),
    )


def _histogram(lengths: NDArray[np.integer], longest: int) -> list[tuple[int, int]]:
    """Count by powers of two: 0, 1, 2, 3 to 4, 5 to 8, ...; from the shortest on."""
    ends = [0, *(1 << power for power in range(max(longest - 1, 0).bit_length() + 1))]
    bins = np.searchsorted(np.array(ends), lengths)
    counts = np.bincount(bins, minlength=len(ends)).tolist()
    first = int(bins.min())
    return list(zip(ends[first:], counts[first:], strict=True))
