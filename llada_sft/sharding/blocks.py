"""What all readers share: blocks of whole rows, and what readers of text need of a file."""

import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.errors import DataError

BLOCK_BYTES = 1 << 21
_PIECE_BYTES = 1 << 19
_WORD_STARTS = b"NI"
_SPACE, _BACKSLASH, _SMALL_U = b" \\u"

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

    These are the bytes below 32; N and I, with which NaN and Infinity begin; and backslashes before
    u, with which halves of surrogate pairs begin. Each step is one that numpy does for many bytes
    at once, and pieces are so small that they stay in the cache of a core.

    Args:
        data: uint8 [bytes], a multiple of 8 of them.

    Returns:
        int64: where they are, in their order.
    """
    found = [np.empty(0, np.int64)]
    buffers = np.empty((3, _PIECE_BYTES), np.bool_)
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        special, is_one, is_next = buffers[:, : len(piece)]
        np.less(piece, _SPACE, out=special)
        for letter in _WORD_STARTS:
            np.equal(piece, letter, out=is_one)
            np.logical_or(special, is_one, out=special)
        np.equal(piece, _BACKSLASH, out=is_one)
        # What follows the last byte is in the next piece.
        np.equal(piece[1:], _SMALL_U, out=is_next[:-1])
        is_next[-1] = True
        np.logical_and(is_one, is_next, out=is_one)
        np.logical_or(special, is_one, out=special)
        found.append(_places(special) + start)
    return np.concatenate(found)


def _places(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return where a mask is true; where it seldom is, much faster than np.flatnonzero."""
    # Eight are looked at together.
    words = mask.view(np.uint64)
    some = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words[some].view(np.bool_))
    places: NDArray[np.int64] = (some[inside >> 3] << 3) + (inside & 7)
    return places


def ahead(blocks: Iterator[RowBlock]) -> Generator[RowBlock, None, None]:
    """Return the same blocks, but let a thread make the next one meanwhile.

    Reading, finding rows, compressing and writing release the interpreter's lock: two cores share
    the work. Close it to be sure that the thread has ended. An executor would do the same, but it
    takes as long to import and to pass blocks on as many megabytes take to be moved.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[RowBlock | BaseException | None] = SimpleQueue()

    def make() -> None:
        while wanted.get():
            try:
                made.put(next(blocks, None))
            except BaseException as error:
                made.put(error)

    thread = Thread(target=make)
    thread.start()
    try:
        wanted.put(True)
        while (block := made.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            wanted.put(True)
            yield block
    finally:
        wanted.put(False)
        thread.join()


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
