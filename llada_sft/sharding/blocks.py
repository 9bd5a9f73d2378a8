"""What all readers return: blocks of whole rows, and the rows that are skipped."""

import json
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.rows.bad_row import SHOWN, BadRow, shortened
from llada_sft.sharding.folder import writing

BLOCK_BYTES = 1 << 21

Text = bytes | memoryview


class RowBlock(NamedTuple):
    """Whole rows, one after the other; valid until the next block but one is asked for.

    Attributes:
        text: The rows. Each ends with a newline.
        ends: [rows]: where each row ends in the text.
        position: Bytes of the stored file that are read by now.
    """

    text: Text
    ends: NDArray[np.integer]
    position: int


def block_of(rows: Sequence[Text], position: int) -> RowBlock:
    """Put rows together; each ends with a newline."""
    ends = np.fromiter(map(len, rows), np.int64, len(rows)).cumsum()
    # One row may be very long.
    return RowBlock(rows[0] if len(rows) == 1 else b"".join(rows), ends, position)


def control_bytes(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Find the bytes below 32: newlines, and what JSON has only between its parts or not at all.

    Args:
        data: uint8 [bytes], a multiple of 8 of them.

    Returns:
        int64: where they are, in their order.
    """
    low = data < 32
    # Where few are, twice as fast as np.flatnonzero(low): eight are looked at together.
    words = np.flatnonzero(low.view(np.uint64) != 0)
    row, column = low.reshape(-1, 8)[words].nonzero()
    positions: NDArray[np.int64] = words[row] * 8 + column
    return positions


class BadRows:
    """The rows that are skipped, written down one by one.

    Args:
        path: The file. It must not have the name of a shard.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        self.first: list[BadRow] = []

    def add(self, row: BadRow) -> None:
        """Write a row down.

        Raises:
            DataError: There is no room.
        """
        row = row._replace(message=shortened(" ".join(row.message.split())))
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(row)
        line = json.dumps(row.to_json())
        with writing(self._path), self._path.open("a") as file:
            file.write(line + "\n")


def ahead(blocks: Iterator[RowBlock]) -> Generator[RowBlock, None, None]:
    """Return the same blocks, but let a thread make the next one meanwhile.

    Reading, finding rows, compressing and writing release the interpreter's lock: two cores share
    the work. Close it to be sure that the thread has ended.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block
