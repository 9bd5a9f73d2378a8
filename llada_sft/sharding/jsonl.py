"""The rows of .jsonl, .jsonl.gz and .jsonl.zst, moved as they are.

To parse every row would take several times as long as to copy it. So a row is only looked at where
it starts and ends: `{...}` is taken for JSON, and so that a row cut short or a line of something
else is noticed, any other row is parsed. Nothing that training could use is skipped; a row that is
broken in its middle is moved, and training sets it aside with its line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import orjson
from numpy.typing import NDArray

from llada_sft.data.rows.bad_row import BadRow, nul_byte, too_long_line
from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.data.storage.files import BYTE_ORDER_MARK, open_text
from llada_sft.sharding.blocks import (
    BLOCK_BYTES,
    BadRows,
    RowBlock,
    block_of,
    control_bytes,
)
from llada_sft.sharding.text import file_position, refuse_utf16

_OPEN, _CLOSE, _LINE_END, _RETURN = b"{}\n\r"


def read_jsonl(path: Path, bad_rows: BadRows) -> Iterator[RowBlock]:
    """Return the rows of a file, without blank lines and bad rows.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    with open_text(path) as file:
        reader = _Reader(path, file, bad_rows)
        for num_bytes in reader.whole_lines():
            block = reader.block(num_bytes)
            if len(block.ends):
                yield block


class _Reader:
    """One file: the part of it that is in memory, and the line and byte at which this starts."""

    def __init__(self, path: Path, file: IO[bytes], bad_rows: BadRows) -> None:
        self._path, self._file, self._bad_rows = path, file, bad_rows
        # What was given last is still in use while the next is read.
        self._buffer, self._other = bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)
        self._line, self._byte = 1, 0

    def whole_lines(self) -> Iterator[int]:
        """Read on and on; give how many bytes of the buffer are whole lines."""
        filled = 0
        while num_bytes := self._read(filled):
            filled += num_bytes
            end = self._buffer.rfind(b"\n", 0, filled) + 1
            if end:
                yield end
                filled = self._change_buffers(end, filled)
            elif filled == len(self._buffer):
                filled = self._with_more_room(filled)
        if filled:
            self._buffer[filled] = _LINE_END
            yield filled + 1

    def _change_buffers(self, end: int, filled: int) -> int:
        """Continue in the other buffer with what follows the last whole line."""
        rest = self._buffer[end:filled]
        if len(rest) >= len(self._other):
            self._other = bytearray(len(self._buffer))
        self._buffer, self._other = self._other, self._buffer
        self._buffer[: len(rest)] = rest
        return len(rest)

    def _read(self, filled: int) -> int:
        # Its stub knows only the most general file.
        num_bytes: int = self._file.readinto(memoryview(self._buffer)[filled:])  # type: ignore[attr-defined]
        return num_bytes

    def _with_more_room(self, filled: int) -> int:
        """Make room for a line that fills the buffer, or skip it; return what is left of it."""
        if filled < MAX_LINE_BYTES:
            self._buffer = self._buffer + bytes(min(filled, MAX_LINE_BYTES - filled))
            return filled
        num_bytes, rest = self._skip_line(filled)
        self._bad(self._line, self._byte, *too_long_line(num_bytes))
        self._line, self._byte = self._line + 1, self._byte + num_bytes
        self._buffer[: len(rest)] = rest
        return len(rest)

    def _skip_line(self, num_bytes: int) -> tuple[int, bytes]:
        """Read to the end of a line; return its size, and what was read after it."""
        while count := self._read(0):
            end = self._buffer.find(b"\n", 0, count) + 1
            if end:
                return num_bytes + end, bytes(self._buffer[end:count])
            num_bytes += count
        return num_bytes, b""

    def block(self, num_bytes: int) -> RowBlock:
        """Find the rows of the whole lines, and skip all other lines."""
        start = self._mark_bytes() if self._byte == 0 else 0
        data = np.frombuffer(self._buffer, np.uint8)
        ends, keep = _find_rows(data, start, num_bytes)
        text = memoryview(self._buffer)[:num_bytes]
        for number in np.flatnonzero(~keep):
            first = int(ends[number - 1]) if number else start
            keep[number] = self._is_row(int(number), first, bytes(text[first : ends[number]]))
        self._line, self._byte = self._line + len(ends), self._byte + num_bytes
        position = file_position(self._file)
        if keep.all():
            return RowBlock(text[start:], ends - start, position)
        starts = np.concatenate(([start], ends[:-1]))[keep].tolist()
        rows = zip(starts, ends[keep].tolist(), strict=True)
        return block_of([text[first:end] for first, end in rows], position)

    def _mark_bytes(self) -> int:
        refuse_utf16(self._path, bytes(self._buffer[:2]))
        return len(BYTE_ORDER_MARK) if self._buffer.startswith(BYTE_ORDER_MARK) else 0

    def _is_row(self, number: int, start: int, row: bytes) -> bool:
        """Look closely at a line: if it is neither blank nor a row, report it."""
        if row.isspace():
            return False
        if problem := _problem(row):
            self._bad(self._line + number, self._byte + start, *problem)
        return problem is None

    def _bad(self, line: int, byte: int, reason: str, message: str) -> None:
        self._bad_rows.add(BadRow(str(self._path), line, byte, reason, message))


def _find_rows(
    data: NDArray[np.uint8], start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find where lines end, and which of them surely are rows: `{...}`, without control bytes.

    Args:
        data: uint8 [a multiple of 8].
        start: Where the first line starts.
        stop: Where the last one ends.

    Returns:
        int64 [lines], where each ends, its newline included; bool [lines].
    """
    places = control_bytes(data[: -(-stop // 8) * 8])
    places = places[(places >= start) & (places < stop)]
    is_end = data[places] == _LINE_END
    ends, others = places[is_end], places[~is_end]
    starts = np.concatenate(([start], ends[:-1] + 1))
    # Of a line that is too short, the last byte is another line's: its first is no `{` then.
    last = np.maximum(ends - 1, 0)
    last = np.maximum(last - (data[last] == _RETURN), 0)
    keep = (data[starts] == _OPEN) & (data[last] == _CLOSE)
    others = others[(data[others] != _RETURN) | (data[others + 1] != _LINE_END)]
    keep[ends.searchsorted(others)] = False
    return ends + 1, keep


def _problem(row: bytes) -> tuple[str, str] | None:
    """Return reason and message if a row is not JSON."""
    try:
        orjson.loads(row)
    except orjson.JSONDecodeError as error:
        if b"\0" in row:
            return nul_byte(row)
        return "not_json", f"not JSON: {error.msg}"
    return None
