"""Long curves -> fewer points that look the same: the least and the greatest of each bucket.

A mean would hide the peaks that a person looks for. The points that stay are the logged ones,
unchanged.
"""

from collections.abc import Sequence

# Of each bucket: its least and its greatest value, and a gap if it has one.
_MOST_OF_BUCKET = 3


def thinned(values: Sequence[float | None], most: int) -> list[int]:
    """Choose at most `most` points of a curve, its first and its last one among them.

    Args:
        values: In their order; None where the curve has a gap.
        most: How many may stay; at least 5.

    Returns:
        Their places, in order.
    """
    if len(values) <= most:
        return list(range(len(values)))
    inner = len(values) - 2
    buckets = (most - 2) // _MOST_OF_BUCKET
    chosen = {0, len(values) - 1}
    for bucket in range(buckets):
        first, end = 1 + bucket * inner // buckets, 1 + (bucket + 1) * inner // buckets
        chosen |= _of_bucket(values, first, end)
    return sorted(chosen)


def _of_bucket(values: Sequence[float | None], first: int, end: int) -> set[int]:
    known = {place: value for place in range(first, end) if (value := values[place]) is not None}
    chosen: set[int] = set()
    if known:
        chosen |= {min(known, key=known.__getitem__), max(known, key=known.__getitem__)}
    if len(known) < end - first:
        chosen.add(next(place for place in range(first, end) if values[place] is None))
    return chosen
