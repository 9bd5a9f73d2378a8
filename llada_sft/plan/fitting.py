"""The largest micro-batch, and the fewest nodes, that a GPU's memory has room for."""

from collections.abc import Callable

# More nodes than these are not looked for.
MOST_NODES = 1024
_MOST_STEPS = 1 << 20


def largest_micro_batch(fits: Callable[[int], bool], step: int = 256) -> int:
    """Return the most tokens of a micro-batch, a multiple of `step`; 0: not even one step fits."""
    high = 1
    while fits(step * high) and high < _MOST_STEPS:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(step * middle) else (low, middle)
    return step * low


def fewest_nodes(fits: Callable[[int], bool]) -> int | None:
    """Return the fewest nodes; None: there is no such number up to 1,024."""
    if not fits(MOST_NODES):
        return None
    low, high = 0, MOST_NODES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
