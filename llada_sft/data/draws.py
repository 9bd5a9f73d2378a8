"""Which file the next row is drawn from, in proportion to the rows that each has left."""

from collections.abc import Iterable, Iterator, Sequence


def draw_files(left: Sequence[int], tickets: Iterable[int]) -> Iterator[int]:
    """Yield a file for each ticket, until no rows are left.

    A ticket, modulo the rows that are left, is the number of a row, counted file after file. The
    rows are held as a tree of sums, so that a draw costs log2(files): node 1 is the root, nodes 2i
    and 2i + 1 are the two below node i; the last are the files.

    Args:
        left: Rows that each file has left.
        tickets: Random numbers.
    """
    first = 1 << max(0, len(left) - 1).bit_length()
    sums = [0] * first + [*left, *[0] * (first - len(left))]
    for node in reversed(range(1, first)):
        sums[node] = sums[2 * node] + sums[2 * node + 1]
    # One loop in one frame: this runs for every row.
    for ticket in tickets:
        number, node = ticket % sums[1], 1
        while node < first:
            sums[node] -= 1
            node *= 2
            if number >= sums[node]:
                number -= sums[node]
                node += 1
        sums[node] -= 1
        yield node - first
