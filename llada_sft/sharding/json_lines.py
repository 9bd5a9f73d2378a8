"""Text of JSON -> values -> rows, one line of JSON each; what cannot become one is skipped.

A number keeps its value. orjson, which reads and writes all else, reads an integer beyond 64 bits
as the nearest float, and cannot write it: such an integer is kept as its digits. NaN and Infinity,
which Python writes and JSON does not have, become null.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from llada_sft.data.rows.bad_row import BadRow, nul_byte, too_long_line
from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.sharding.blocks import BLOCK_BYTES, RowBlock, block_of
from llada_sft.sharding.findings import Findings

# Any integer beyond 64 bits has as many digits; so two neighbours of each ninth byte are digits.
_LONG = re.compile(rb"[0-9]{19}")
_STEP, _MAYBE_LONG = 9, re.compile(rb"[0-9][0-9]")
_SHORT_DIGITS = 18
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1


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


def json_value(text: bytes) -> Any:
    """Return the value of a text of JSON, or an `Unusable` that says as training does why not."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        problem = _problem(text, error)
        if b"NaN" not in text and b"Infinity" not in text:
            return problem
        value = _parse_exactly(text)
        # Python also takes halves of surrogate pairs.
        return problem if isinstance(json_line(value), Unusable) else value
    # To search the whole text takes longer than to parse it.
    if _MAYBE_LONG.search(text[_STEP - 1 :: _STEP]) and _LONG.search(text):
        return _parse_exactly(text)
    return value


def json_line(value: object) -> bytes | Unusable:
    """Return a value as a line of JSON."""
    if isinstance(value, Unusable):
        return value
    try:
        return orjson.dumps(value, default=_number, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        reason = "not_utf8" if "UTF-8" in str(error) else "not_json"
        return Unusable(reason, f"cannot be written as JSON: {error}")


def checked_line(line: bytes) -> bytes | Unusable:
    """Return a line of JSON as it is; written again if only its NaN and Infinity are not JSON."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return json_line(json_value(line))
    return line


def blocks_of(
    parsed: Iterator[Parsed], path: Path, unit: Literal["line", "row"], findings: Findings
) -> Iterator[RowBlock]:
    """Write each record as one line, and gather lines into blocks."""
    rows: list[bytes] = []
    size = position = 0
    for number, record, position in parsed:
        row = json_line(record)
        if not isinstance(row, Unusable) and len(row) > MAX_LINE_BYTES:
            row = Unusable(*too_long_line(len(row)))
        if isinstance(row, Unusable):
            findings.add_bad(BadRow(str(path), number, None, *row, unit))
            continue
        rows.append(row)
        size += len(row)
        if size >= BLOCK_BYTES:
            yield block_of(rows, position)
            rows, size = [], 0
    if rows:
        yield block_of(rows, position)


def _problem(text: bytes, error: orjson.JSONDecodeError) -> Unusable:
    try:
        text.decode()
    except UnicodeDecodeError as undecodable:
        byte = text[undecodable.start]
        return Unusable(
            "not_utf8", f"not UTF-8: byte 0x{byte:02x} at {undecodable.start} of the line"
        )
    if b"\0" in text:
        return Unusable(*nul_byte(text))
    return Unusable("not_json", f"not JSON: {error.msg}")


def _parse_exactly(text: bytes) -> Any:
    try:
        return json.loads(
            text.decode(),
            parse_constant=lambda _: None,
            parse_int=_integer,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        return Unusable("not_json", f"not JSON: {error}")


def _integer(digits: str) -> object:
    if len(digits) <= _SHORT_DIGITS:
        return int(digits)
    if len(digits) <= len(str(_MIN_INTEGER)) and _MIN_INTEGER <= int(digits) <= _MAX_INTEGER:
        return int(digits)
    return orjson.Fragment(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        # As orjson says it.
        raise ValueError("number is infinity when parsed as double")
    return value


def _number(value: object) -> object:
    """Return what JSON has for a decimal: its digits, if no integer or float has its value."""
    if not isinstance(value, Decimal):
        raise TypeError
    if not value.is_finite():
        return None
    if value.as_tuple().exponent == 0:
        return _integer(str(value))
    nearest = float(value)
    return nearest if Decimal(repr(nearest)) == value else orjson.Fragment(f"{value:f}")
