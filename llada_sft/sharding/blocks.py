"""What all readers share: blocks of whole rows, and what readers of text need of a file."""

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.errors import DataError

BLOCK_BYTES = 1 << 21
_PIECE_BYTES = 1 << 18
_SPACE, _STARTS = 32, b"NI\\"

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


def special_bytes(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Find the bytes at which a row of JSON may have what the parser of training does not take.

    These are the bytes below 32; N and I, with which NaN and Infinity begin; and backslashes, with
    which halves of surrogate pairs begin. Each step is one that numpy does for many bytes at once,
    and pieces are so small that they stay in the cache of a core.

    Args:
        data: uint8 [bytes], a multiple of 8 of them.

    Returns:
        int64: where they are, in their order.
    """
    found = [np.empty(0, np.int64)]
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        special, is_one = piece < _SPACE, np.empty(len(piece), np.bool_)
        for byte in _STARTS:
            np.equal(piece, byte, out=is_one)
            special |= is_one
        found.append(_places(special) + start)
    return np.concatenate(found)


def _places(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return where a mask is true; where it seldom is, much faster than np.flatnonzero."""
    # Eight are looked at together.
    words = np.flatnonzero(mask.view(np.uint64) != 0)
    inside = np.flatnonzero(mask.reshape(-1, 8)[words])
    places: NDArray[np.int64] = words[inside >> 3] * 8 + (inside & 7)
    return places


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


def refuse_utf16(path: Path, first: bytes) -> None:
    """Refuse what some spreadsheets write.

    Raises:
        DataError: The file starts with the mark of UTF-16.
    """
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")


def file_position(file: IO[bytes]) -> int:
    """Return how much of the stored file was read; of a compressed one, not of its text."""
    return os.lseek(file.fileno(), 0, os.SEEK_CUR)
