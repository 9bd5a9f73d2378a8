"""Which file the next row is drawn from, in proportion to the rows that each has left."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def draw_files(
    left: Sequence[int], tickets: Iterable[NDArray[np.uint64]]
) -> Iterator[NDArray[np.int64]]:
    """Yield a file for each ticket, until no rows are left.

    A ticket, modulo the rows that are left, is the number of a row, counted file after file. The
    rows are held as a tree of sums, so that a draw costs log2(files): level 0 is the root, below
    node i of a level stand 2i and 2i + 1 of the next one; the last are the files.

    Many draws go down the tree together: this runs for every row of a run.

    Args:
        left: Rows that each file has left.
        tickets: Random numbers, some [N] at a time.

    Yields:
        int64 [N], for each of these.
    """
    depth = max(0, len(left) - 1).bit_length()
    files = np.zeros(1 << depth, np.int64)
    files[: len(left)] = left
    for some in tickets:
        drawn = _draw(files, depth, some)
        files -= np.bincount(drawn, minlength=len(files))
        yield drawn


def _draw(files: NDArray[np.int64], depth: int, tickets: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Draw for each of some tickets.

    Args:
        files: int64 [2**depth], rows left in each.
        depth: Of the tree.
        tickets: uint64 [N].

    Returns:
        int64 [N].
    """
    left = files.sum() - np.arange(len(tickets))
    numbers = (tickets % left.astype(np.uint64)).astype(np.int64)
    # Which of the tickets stands where, so that those at one node are together, in their order.
    order, nodes = np.arange(len(tickets)), np.zeros(len(tickets), np.int64)
    small = np.min_scalar_type(len(files))
    for level in range(depth):
        # Rows below the first of the two nodes under each.
        rows = files.reshape(2 << level, -1).sum(axis=1)[2 * nodes]
        num_draws = np.bincount(nodes, minlength=1 << level)
        first_of_node = (num_draws.cumsum() - num_draws)[nodes]
        rows, is_first = _halves(numbers, rows, first_of_node)
        numbers = np.where(is_first, numbers, numbers - rows)
        nodes = 2 * nodes + ~is_first
        # Of few bytes, which are sorted by counting them.
        grouped = nodes.astype(small).argsort(kind="stable")
        order, nodes, numbers = order[grouped], nodes[grouped], numbers[grouped]
    drawn = np.empty(len(tickets), np.int64)
    drawn[order] = nodes
    return drawn


def _halves(
    numbers: NDArray[np.int64], rows: NDArray[np.int64], first_of_node: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Say which draws go to the first half of their node, and the rows that it has left for each.

    Each draw that goes there leaves a row less to those after it. Without these it is nearly right;
    then, from the first draw on, each round makes at least one more right for good.

    Args:
        numbers: int64 [N], of the rows that are drawn, within their nodes.
        rows: int64 [N], of the first half of each one's node before all of these.
        first_of_node: int64 [N], where the draws of each one's node begin.
    """
    is_first = numbers < rows
    while True:
        before = is_first.cumsum() - is_first
        left = rows - (before - before[first_of_node])
        again = numbers < left
        if np.array_equal(again, is_first):
            return left, is_first
        is_first = again
