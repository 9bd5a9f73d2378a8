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
_PIECE_BYTES = 1 << 18
# Of NaN, Infinity and `\u`.
_STARTS = b"NI\\"
# With these bits flipped, the first byte of each is 25 to 31 more than the second; in other texts
# few bytes are 0 to 31 more than the next. It was found by trying all values.
_FLIPPED = 0xCE
_SPACE = 0x20

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


class SpecialBytes:
    """Finds the bytes at which a row of JSON may have what the parser of training does not take.

    These are the bytes below 32, and the beginnings of NaN, Infinity and an escaped half of a
    surrogate pair. Pieces of a text are so small that they stay in the cache of a core.
    """

    def __init__(self) -> None:
        # Memory that is taken and given back for each piece costs as much as the search.
        self._low = np.empty(_PIECE_BYTES, np.uint8)
        self._may_have = np.empty(_PIECE_BYTES // 8, np.bool_)

    def find(self, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return where they are, in their order, and some other N, I and backslashes.

        Args:
            data: uint8 [bytes], a multiple of 8 of them.
        """
        found = [np.empty(0, np.int64)]
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            groups = self._groups(piece, data[start + 1 : start + 1 + len(piece)])
            inside = piece.view(np.uint64)[groups].view(np.uint8)
            special = inside < _SPACE
            for letter in _STARTS:
                special |= inside == letter
            (places,) = special.nonzero()
            found.append((groups[places >> 3] << 3) + (places & 7) + start)
        return np.concatenate(found)

    def _groups(self, piece: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return which groups of eight bytes may have special ones; each step is SIMD in numpy.

        Args:
            piece: uint8 [bytes].
            following: The byte that follows each; that of the last one may be missing.
        """
        low, may_have = self._low[: len(piece)], self._may_have[: len(piece) // 8]
        np.bitwise_xor(piece, _FLIPPED, out=low)
        np.subtract(low[: len(following)], following, out=low[: len(following)])
        # A byte that nothing follows is looked at whatever it is.
        low[len(following) :] = 0
        np.minimum(low, piece, out=low)
        special = low.view(np.bool_)
        # `low < _SPACE` takes numpy twice as long.
        np.greater(_SPACE, low, out=special)
        np.not_equal(special.view(np.uint64), 0, out=may_have)
        return may_have.nonzero()[0]


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
