"""Deals rows out to shards, so that all have the same number of bytes.

Each next piece goes to the shard with the fewest bytes. A piece is one row, or as many as make one
percent of that shard: so no two shards ever differ by more than one percent and one row, however
much is still to come, and each shard has rows from the start to the end of the input.
"""

from heapq import heapreplace

from llada_sft.sharding.blocks import RowBlock
from llada_sft.sharding.shard_files import ShardFiles

_PIECES = 100
# ext4 may take many times as long for the bytes of a larger write.
_MAX_PIECE_BYTES = 1 << 18


class Dealer:
    """Deals out to the shards of `files`.

    Attributes:
        num_rows: Rows that were dealt out.
    """

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        # Of two with the same bytes, the first: the result depends on nothing but the rows.
        self._heap = [(0, shard) for shard in range(files.num_shards)]
        self.num_rows = 0

    @property
    def sizes(self) -> list[int]:
        """Bytes of rows that each shard has, before they are compressed."""
        return [size for size, _ in sorted(self._heap, key=lambda entry: entry[1])]

    def deal(self, block: RowBlock) -> None:
        """Write the rows of a block.

        Raises:
            DataError: They cannot be written.
        """
        text, ends, heap = block.text, block.ends, self._heap
        row = start = 0
        while row < len(ends):
            size, shard = heap[0]
            most = start + min(size // _PIECES, _MAX_PIECE_BYTES)
            # At least one row.
            row = max(row + 1, int(ends.searchsorted(most, side="right")))
            end = int(ends[row - 1])
            self._files.write(shard, text[start:end])
            heapreplace(heap, (size + end - start, shard))
            start = end
        self.num_rows += len(ends)
