"""Where the rows of a text start, and a fingerprint: one pass over the file."""

from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from isal.isal_zlib import crc32  # several times as fast as zlib's
from numpy.typing import NDArray

from llada_sft.data.storage.files import open_text
from llada_sft.errors import DataError

_CHUNK_BYTES = 1 << 20
_LINE_END = 0x0A
# For each byte whether it is blank.
_IS_BLANK = np.isin(np.arange(256), np.frombuffer(b" \t\r\v\f", np.uint8))


class LineIndex(NamedTuple):
    """Where the non-blank lines of a text start, how long they are, and their numbers, from 1.

    A rank may have ten million rows: but for `starts` (int64 [rows]), the arrays have the smallest
    unsigned type that holds their values.

    Attributes:
        starts: The byte at which each starts.
        sizes: Bytes of each, including its newline.
        lines: The number of each.
        size: Bytes of the text.
        fingerprint: Names the content of the whole file as it is stored: its size and its CRC-32.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.unsignedinteger]
    lines: NDArray[np.unsignedinteger]
    size: int
    fingerprint: str


def index_lines(path: Path, shown: str | None = None) -> LineIndex:
    """Find the lines of a plain file that are not blank.

    Args:
        path: The file.
        shown: What messages call it.

    Raises:
        DataError: The file cannot be read, or is compressed.
    """
    with open_text(path, shown) as file:
        bounds, first_bytes, fingerprint = _scan(file)
        keep = first_bytes != _LINE_END
        # Only a line that starts with a blank character can be blank.
        for number in np.flatnonzero(keep & _IS_BLANK[first_bytes]):
            keep[number] = not _is_blank(file, int(bounds[number]), int(bounds[number + 1]))
    size, starts, sizes = int(bounds[-1]), bounds[:-1], _smallest(np.diff(bounds))
    lines = np.arange(1, len(keep) + 1, dtype=np.min_scalar_type(len(keep)))
    if not keep.all():
        starts, sizes, lines = starts[keep], sizes[keep], lines[keep]
    return LineIndex(starts, sizes, lines, size, fingerprint)


def _smallest(values: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
    return values.astype(np.min_scalar_type(values.max(initial=0)))


def _is_blank(file: IO[bytes], start: int, end: int) -> bool:
    file.seek(start)
    sizes = (min(_CHUNK_BYTES, end - offset) for offset in range(start, end, _CHUNK_BYTES))
    return all(file.read(size).isspace() for size in sizes)


def fingerprint_of(path: Path, shown: str) -> str:
    """Return a name for the content of a file, compressed or not: its size and its CRC-32.

    Raises:
        DataError: The file cannot be read.
    """
    size = checksum = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                checksum = crc32(chunk, checksum)
                size += len(chunk)
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from None
    return f"{size}-{checksum:08x}"


def _scan(file: IO[bytes]) -> tuple[NDArray[np.int64], NDArray[np.uint8], str]:
    """Return where every line starts, blank ones too, and the last ends; first bytes; fingerprint.

    bounds: [lines + 1], first_bytes: [lines].
    """
    starts, first_bytes = [np.empty(0, np.int64)], [np.empty(0, np.uint8)]
    size, checksum, line_begins = 0, 0, True
    while chunk := file.read(_CHUNK_BYTES):
        data = np.frombuffer(chunk, np.uint8)
        begins = np.flatnonzero(data == _LINE_END) + 1
        if line_begins:
            begins = np.concatenate(([0], begins))
        line_begins = chunk.endswith(b"\n")
        if line_begins:
            begins = begins[:-1]
        starts.append(begins + size)
        first_bytes.append(data[begins])
        checksum = crc32(chunk, checksum)
        size += len(chunk)
    starts.append(np.array([size]))
    return np.concatenate(starts), np.concatenate(first_bytes), f"{size}-{checksum:08x}"
