"""The rows of .json: one array of objects, read piece by piece however long it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import ijson

from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.data.storage.files import BYTE_ORDER_MARK, open_text
from llada_sft.errors import DataError
from llada_sft.sharding.blocks import BadRows, RowBlock
from llada_sft.sharding.json_lines import Parsed, Unusable, blocks_of
from llada_sft.sharding.text import file_position, refuse_utf16

_PIECE_BYTES = 1 << 16


def read_json(path: Path, bad_rows: BadRows) -> Iterator[RowBlock]:
    """Return the elements of the array.

    Raises:
        DataError: The file cannot be read, or is not one array of JSON.
    """
    with open_text(path) as file:
        _check_beginning(path, file)
        yield from blocks_of(_parsed(path, file), path, "row", bad_rows)


def _check_beginning(path: Path, file: IO[bytes]) -> None:
    first: bytes = file.peek(_PIECE_BYTES)  # type: ignore[attr-defined]
    refuse_utf16(path, first)
    if first.startswith(BYTE_ORDER_MARK):
        file.read(len(BYTE_ORDER_MARK))
    first = first.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not first.startswith(b"["):
        what = f"starts with {chr(first[0])!r}" if first else "is empty"
        raise DataError(
            f"{path}: is not a JSON array: {what}; name it .jsonl if each line is a row"
        )


def _parsed(path: Path, file: IO[bytes]) -> Iterator[Parsed]:
    number = 0
    pieces = _Pieces(path, file)
    try:
        for number, record in enumerate(ijson.items(pieces, "item", buf_size=_PIECE_BYTES), 1):
            pieces.start_row(number + 1)
            if not isinstance(record, dict):
                kind = type(record).__name__
                record = Unusable("not_an_object", f"a row must be a JSON object, got {kind}")
            yield Parsed(number, record, file_position(file))
    except ijson.JSONError as error:
        what = " ".join(str(error).partition("\n")[0].split())
        raise DataError(f"{path}: not JSON after row {number:,}: {what}") from None


class _Pieces:
    """The file as ijson reads it; a row that never ends is noticed before it fills the memory."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._row, self._num_bytes = 1, 0

    def start_row(self, row: int) -> None:
        self._row, self._num_bytes = row, 0

    def read(self, size: int) -> bytes:
        if self._num_bytes > MAX_LINE_BYTES:
            raise DataError(f"{self._path}: row {self._row:,}: more than {MAX_LINE_BYTES:,} bytes")
        piece = self._file.read(size)
        self._num_bytes += len(piece)
        return piece
