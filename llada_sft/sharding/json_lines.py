"""Records that are parsed -> rows: one line of JSON each; what cannot become one is skipped."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from llada_sft.data.rows.bad_row import BadRow, too_long_line
from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.sharding.blocks import BLOCK_BYTES, BadRows, RowBlock, block_of


class Unusable(NamedTuple):
    """Why there is no record where one should be."""

    reason: str
    message: str


class Parsed(NamedTuple):
    """What was found in a file.

    Attributes:
        number: Its line or row, from 1.
        record: The record, or what is wrong with it.
        position: Bytes of the stored file that are read by now.
    """

    number: int
    record: dict[str, Any] | Unusable
    position: int


def blocks_of(
    parsed: Iterator[Parsed], path: Path, unit: Literal["line", "row"], bad_rows: BadRows
) -> Iterator[RowBlock]:
    """Write each record as one line, and gather lines into blocks."""
    rows: list[bytes] = []
    size = position = 0
    for number, record, position in parsed:
        row = record if isinstance(record, Unusable) else _line(record)
        if isinstance(row, Unusable):
            bad_rows.add(BadRow(str(path), number, None, *row, unit))
            continue
        rows.append(row)
        size += len(row)
        if size >= BLOCK_BYTES:
            yield block_of(rows, position)
            rows, size = [], 0
    if rows:
        yield block_of(rows, position)


def _line(record: dict[str, Any]) -> bytes | Unusable:
    try:
        line = orjson.dumps(record, default=_plain, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        return Unusable("not_json", f"cannot be written as JSON: {error}")
    if len(line) > MAX_LINE_BYTES:
        return Unusable(*too_long_line(len(line)))
    return line


def _plain(value: object) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError
