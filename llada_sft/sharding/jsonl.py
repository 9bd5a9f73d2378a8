"""The rows of .jsonl, .jsonl.gz and .jsonl.zst, moved as they are.

To parse every row would take several times as long as to copy it. So a row is only looked at where
it starts and ends: `{...}` is taken for JSON, and so that a row cut short or a line of something
else is noticed, any other row is parsed. So is a row that has a control byte, NaN or Infinity, or
an escaped half of a surrogate pair. Nothing that training could use is skipped; a row that is
broken in its middle is moved, and training sets it aside with its line.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.rows.bad_row import BadRow, too_long_line
from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.data.storage.files import BYTE_ORDER_MARK, is_compressed, open_text
from llada_sft.errors import DataError
from llada_sft.sharding.blocks import (
    BLOCK_BYTES,
    RowBlock,
    SpecialBytes,
    Text,
    block_of,
    file_position,
    refuse_utf16,
)
from llada_sft.sharding.findings import Findings

_OPEN, _CLOSE, _LINE_END, _RETURN = b"{}\n\r"
_SPACE, _N, _SMALL_A, _I, _SMALL_N, _SMALL_F, _BACKSLASH, _SMALL_U, _SMALL_D = b" NaInf\\ud"
_BLANKS = re.compile(rb"\s*+")
_NAME_IT = "name it .json"


def read_jsonl(path: Path, findings: Findings) -> Iterator[RowBlock]:
    """Return the rows of a file, without blank lines and bad rows.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    with open_text(path) as file:
        reader = _Reader(path, file, findings)
        for num_bytes in reader.whole_lines():
            block = reader.block(num_bytes)
            if len(block.ends):
                yield block


class _Reader:
    """One file: the part of it that is in memory, and the line and byte at which this starts."""

    def __init__(self, path: Path, file: IO[bytes], findings: Findings) -> None:
        self._path, self._file, self._findings = path, file, findings
        # What was given last is still in use while the next is read.
        self._buffer, self._other = bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)
        self._special = SpecialBytes()
        self._line, self._byte = 1, 0
        self._is_all = False

    def whole_lines(self) -> Iterator[int]:
        """Read on and on; give how many bytes of the buffer are whole lines."""
        filled = 0
        while num_bytes := self._read(filled):
            filled += num_bytes
            end = self._buffer.rfind(b"\n", 0, filled) + 1
            if end:
                self._is_all = end == filled < len(self._buffer)
                yield end
                filled = self._change_buffers(end, filled)
            elif filled == len(self._buffer):
                filled = self._with_more_room(filled)
        if filled:
            self._buffer[filled] = _LINE_END
            self._is_all = True
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
        start = self._check_beginning(num_bytes) if self._byte == 0 else 0
        data = np.frombuffer(self._buffer, np.uint8)
        # Groups of eight: the last may be longer than the text.
        places = self._special.find(data[: -(-num_bytes // 8) * 8])
        places = places[places.searchsorted(start) : places.searchsorted(num_bytes)]
        ends, keep = _find_rows(data, start, places)
        text = memoryview(self._buffer)[:num_bytes]
        written: dict[int, Text] = {}
        for number in map(int, np.flatnonzero(~keep)):
            first = int(ends[number - 1]) if number else start
            line = bytes(text[first : ends[number]])
            row = self._row(number, first, line)
            keep[number] = row is not None
            if row is not None and row is not line:
                written[number] = row
        self._line, self._byte = self._line + len(ends), self._byte + num_bytes
        position = file_position(self._file)
        if keep.all() and not written:
            return RowBlock(text[start:], ends - start, position)
        starts = np.concatenate(([start], ends[:-1])).tolist()
        rows = [
            written.get(number, text[starts[number] : ends[number]])
            for number in map(int, np.flatnonzero(keep))
        ]
        return block_of(rows, position)

    def _check_beginning(self, num_bytes: int) -> int:
        """Check what the file is; return where its first line starts."""
        refuse_utf16(self._path, bytes(self._buffer[:2]))
        start = len(BYTE_ORDER_MARK) if self._buffer.startswith(BYTE_ORDER_MARK) else 0
        if problem := _other_json(self._buffer, start, num_bytes, self._is_all):
            what, do = problem
            if do == _NAME_IT and is_compressed(self._path):
                do = f"decompress it and {do}"
            raise DataError(f"{self._path}: {what}, not one object on each line; {do}")
        return start

    def _row(self, number: int, start: int, line: bytes) -> bytes | None:
        """Look closely at a line; return its row, or report that it is neither blank nor a row."""
        if line.isspace():
            return None
        # Most files have no such lines: what parses them is not imported for the others.
        from llada_sft.sharding.json_lines import Unusable, checked_line

        row = checked_line(line)
        if isinstance(row, Unusable):
            self._bad(self._line + number, self._byte + start, *row)
            return None
        return row

    def _bad(self, line: int, byte: int, reason: str, message: str) -> None:
        self._findings.add_bad(BadRow(str(self._path), line, byte, reason, message))


def _other_json(buffer: bytearray, start: int, stop: int, is_all: bool) -> tuple[str, str] | None:
    """Say what else the text of a file is, and what to do, if its rows are not its lines.

    Args:
        buffer: Has the first lines of the file.
        start, stop: Where they start and end.
        is_all: There are no others.
    """
    blanks = _BLANKS.match(buffer, start, stop)
    assert blanks
    first = blanks.end()
    end = buffer.find(b"\n", first, stop)
    last = buffer[max(first, end - 2) : end].rstrip()
    if end < 0 or (buffer[first] == _OPEN and last.endswith(b"}")):
        return None
    from llada_sft.sharding.json_scan import is_array_of_objects, spans_lines

    # A line may be very long.
    text = bytes(memoryview(buffer)[first : min(stop, max(end + 1, first + BLOCK_BYTES))])
    line, _, rest = text.partition(b"\n")
    if is_all and not rest.strip() and is_array_of_objects(line):
        return "is a JSON array on one line", _NAME_IT
    if not spans_lines(text):
        return None
    if text.startswith(b"["):
        return "is a JSON array over several lines", _NAME_IT
    return "has objects over several lines", "write each on one line, as  jq -c .  does"


def _find_rows(
    data: NDArray[np.uint8], start: int, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find where lines end, and which of them surely are rows: `{...}`, without control bytes.

    Args:
        data: uint8 [bytes].
        start: Where the first line starts.
        places: Where special bytes are; the last one ends the last line.

    Returns:
        int64 [lines], where each ends, its newline included; bool [lines].
    """
    is_end = data[places] == _LINE_END
    ends, others = places[is_end], places[~is_end]
    starts = np.concatenate(([start], ends[:-1] + 1))
    # Of a line that is too short, the last byte is another line's: its first is no `{` then.
    last = np.maximum(ends - 1, 0)
    last = np.maximum(last - (data[last] == _RETURN), 0)
    keep = (data[starts] == _OPEN) & (data[last] == _CLOSE)
    keep[ends.searchsorted(_suspects(data, others))] = False
    return ends + 1, keep


def _suspects(data: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find special bytes, none of them the end of a line, that may make their line a bad row.

    A return before a newline does not; a letter or a backslash does if it begins NaN, Infinity or
    an escaped half of a surrogate pair.
    """
    first, second = data[places], data[places + 1]
    # Few are left after a look at one more byte.
    maybe = (first < _SPACE) | (second == _SMALL_A) | (second == _SMALL_N) | (second == _SMALL_U)
    places, first, second = places[maybe], first[maybe], second[maybe]
    third = data[np.minimum(places + 2, len(data) - 1)]
    is_suspect = (first < _SPACE) & ((first != _RETURN) | (second != _LINE_END))
    is_suspect |= (first == _N) & (second == _SMALL_A) & (third == _N)
    is_suspect |= (first == _I) & (second == _SMALL_N) & (third == _SMALL_F)
    is_escape = (first == _BACKSLASH) & (second == _SMALL_U)
    is_suspect |= is_escape & ((third | _SPACE) == _SMALL_D)
    suspects: NDArray[np.int64] = places[is_suspect]
    return suspects
