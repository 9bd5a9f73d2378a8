"""Records that are parsed -> rows: one line of JSON each; what cannot become one is left out."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.sharding.blocks import BLOCK_BYTES, BadRow, BadRows, Block, block_of


class Problem(NamedTuple):
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
    record: dict[str, Any] | Problem
    position: int


def blocks_of(
    found: Iterator[Parsed], path: Path, unit: Literal["line", "row"], bad_rows: BadRows
) -> Iterator[Block]:
    """Write each record as one line, and gather lines into blocks."""
    rows: list[bytes] = []
    size = position = 0
    for number, record, position in found:
        row = record if isinstance(record, Problem) else _line(record)
        if isinstance(row, Problem):
            bad_rows.add(BadRow(str(path), unit, number, None, *row))
            continue
        rows.append(row)
        size += len(row)
        if size >= BLOCK_BYTES:
            yield block_of(rows, position)
            rows, size = [], 0
    if rows:
        yield block_of(rows, position)


def _line(record: dict[str, Any]) -> bytes | Problem:
    try:
        line = orjson.dumps(record, default=_plain, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        return Problem("not_json", f"cannot be written as JSON: {error}")
    if len(line) > MAX_LINE_BYTES:
        message = f"a line of {len(line):,} bytes; {MAX_LINE_BYTES:,} are allowed"
        return Problem("line_too_long", message)
    return line


def _plain(value: object) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError
