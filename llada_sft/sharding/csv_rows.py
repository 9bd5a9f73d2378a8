"""The rows of .csv: fields by the names in the header line, all of them strings."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llada_sft.data.storage.files import open_text
from llada_sft.errors import DataError
from llada_sft.sharding.blocks import BadRows, RowBlock
from llada_sft.sharding.json_lines import Parsed, Unusable, blocks_of
from llada_sft.sharding.text import file_position, refuse_utf16

# The module keeps four bytes of each character of a field.
_MAX_CHARACTERS = 8 * 2**20


def read_csv(path: Path, bad_rows: BadRows) -> Iterator[RowBlock]:
    """Return the rows of a file: RFC 4180, so a quoted field may have commas and newlines.

    Raises:
        DataError: The file cannot be read, its header cannot be used, or a quote is not closed.
    """
    with open_text(path) as file:
        refuse_utf16(path, file.peek(2))  # type: ignore[attr-defined]
        yield from blocks_of(_parsed(path, file), path, "line", bad_rows)


def _parsed(path: Path, file: IO[bytes]) -> Iterator[Parsed]:
    csv.field_size_limit(_MAX_CHARACTERS)
    # Bytes that are not UTF-8 become what JSON cannot hold: then one row is bad, not the file.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        reader = csv.reader(_lines(path, text), strict=True)
        header = _header(path, reader)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield Parsed(line, _problem(path, line, error), file_position(file))
                continue
            if fields is None:
                return
            # A blank line has no fields.
            if fields:
                yield Parsed(line, _record(header, fields), file_position(file))
    finally:
        # The caller, which opened the file, closes it.
        text.detach()


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path}:1: {_problem(path, 1, error).message}") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        what = f"{twice[0]!r} twice" if twice and twice[0] else "a field without a name"
        raise DataError(f"{path}:1: the header line has {what}; name each field")
    return header


def _lines(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    while line := text.readline(_MAX_CHARACTERS):
        number += 1
        if len(line) == _MAX_CHARACTERS:
            raise DataError(f"{path}:{number}: a line of more than {_MAX_CHARACTERS:,} characters")
        yield line


def _problem(path: Path, line: int, error: csv.Error) -> Unusable:
    """Return why a row is bad.

    Raises:
        DataError: What follows was swallowed by a quoted field.
    """
    if "unexpected end" in str(error) or "field limit" in str(error):
        raise DataError(f"{path}:{line}: a quoted field does not end; close its quote") from None
    return Unusable("not_csv", f"not CSV: {error}")


def _record(header: list[str], fields: list[str]) -> dict[str, Any] | Unusable:
    if len(fields) != len(header):
        message = f"{len(fields)} fields; the header line has {len(header)}"
        return Unusable("other_fields", message)
    return dict(zip(header, fields, strict=True))
