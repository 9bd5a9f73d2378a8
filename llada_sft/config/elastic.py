"""`slurm.elastic`: which numbers of nodes can share out one and the same global batch.

On n nodes a rank accumulates nodes × accumulate_grad_batches / n micro-batches. Where that is a
whole number for every n of the range, the training is the same optimization on all of them.
"""

from math import gcd, lcm

# The least common multiple of a wide range may have thousands of digits.
MAX_ACCUMULATION = 1_000_000


def check_range(nodes: int, accumulate: int, allowed: range) -> None:
    """Check that each number of nodes can share out the batch of `nodes` × `accumulate`.

    Raises:
        ValueError: One cannot; names numbers that work.
    """
    unfit = next((count for count in allowed if nodes * accumulate % count), None)
    if unfit is None:
        return
    least, most = _fitting_range(nodes, accumulate, allowed)
    fitting = _fitting_accumulation(nodes, accumulate, allowed)
    other = f"train.accumulate_grad_batches={fitting}, or " if fitting else ""
    raise ValueError(
        f"slurm.elastic: {unfit} nodes cannot share out the global batch, slurm.nodes × "
        f"train.accumulate_grad_batches = {nodes} × {accumulate}, evenly; use "
        f"{other}slurm.elastic=[{least}, {most}]"
    )


def _fitting_accumulation(nodes: int, accumulate: int, allowed: range) -> int | None:
    """Return the next larger accumulation that all can share out; None if it is too large."""
    whole = 1
    for count in allowed:
        whole = lcm(whole, count)
        if whole > MAX_ACCUMULATION * nodes:
            return None
    unit = whole // gcd(whole, nodes)
    return -(-accumulate // unit) * unit


def _fitting_range(nodes: int, accumulate: int, allowed: range) -> tuple[int, int]:
    """Return the widest part of the range around `nodes` that can share out this batch."""
    least = most = nodes
    while least > allowed[0] and nodes * accumulate % (least - 1) == 0:
        least -= 1
    while most < allowed[-1] and nodes * accumulate % (most + 1) == 0:
        most += 1
    return least, most
