"""Which file the next row is drawn from, in proportion to the rows that each has left."""

from collections.abc import Sequence


class RowsLeft:
    """The rows that each file has left, as a tree of sums: a draw costs log2(files).

    Node 1 is the root, nodes 2i and 2i + 1 are the two below node i; the last are the files.

    Args:
        left: Rows of each file.
    """

    def __init__(self, left: Sequence[int]) -> None:
        self._first = 1 << max(0, len(left) - 1).bit_length()
        padding = [0] * (self._first - len(left))
        self._sums = [0] * self._first + [*left, *padding]
        for node in reversed(range(1, self._first)):
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    @property
    def total(self) -> int:
        return self._sums[1]

    def take(self, number: int) -> int:
        """Take one row of the file that has row `number` of all that are left, file after file.

        Returns:
            Which file it is.
        """
        sums, node = self._sums, 1
        while node < self._first:
            sums[node] -= 1
            node *= 2
            if number >= sums[node]:
                number -= sums[node]
                node += 1
        sums[node] -= 1
        return node - self._first
