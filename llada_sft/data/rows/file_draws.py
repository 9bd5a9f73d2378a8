"""Which file the next row is drawn from, in proportion to the rows that each has left."""

from collections.abc import Iterable, Iterator, Sequence


def draw_files(left: Sequence[int], tickets: Iterable[int]) -> Iterator[int]:
    """Yield a file for each ticket, until no rows are left.

    A ticket, modulo the rows that are left, is the number of a row, counted file after file. The
    rows are held as a tree of sums, so that a draw takes log2(files) steps: node 1 is the root,
    the halves of node n are 2n and 2n + 1, and the last nodes are the files.

    Args:
        left: Rows that each file has left.
        tickets: Random numbers, one for each row that is left.
    """
    size = 1 << max(0, len(left) - 1).bit_length()
    sums = [0] * size + list(left) + [0] * (size - len(left))
    for node in range(size - 1, 0, -1):
        sums[node] = sums[2 * node] + sums[2 * node + 1]
    for ticket in tickets:
        number, node = ticket % sums[1], 1
        while node < size:
            sums[node] -= 1
            node *= 2
            if number >= sums[node]:
                number -= sums[node]
                node += 1
        sums[node] -= 1
        yield node - size
