"""The rows of .csv and .tsv: fields by the names in the header line, all of them strings."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llada_sft.data.storage.files import BYTE_ORDER_MARK, open_text
from llada_sft.errors import DataError
from llada_sft.sharding.blocks import RowBlock, file_position, refuse_utf16
from llada_sft.sharding.findings import Findings
from llada_sft.sharding.json_lines import Parsed, Unusable, blocks_of

# The module keeps four bytes of each character of a field.
_MAX_CHARACTERS = 8 * 2**20
_HEADER_BYTES = 1 << 16
# How pandas names the column of its index when it writes it, and when it has read it back.
_INDEX_NAME = re.compile(r"|Unnamed: 0(\.\d+)?")
_COUNT = re.compile(r"[0-9]{1,18}")
_NAMES = {",": "','", ";": "';'", "\t": "tabs"}


def read_csv(path: Path, findings: Findings) -> Iterator[RowBlock]:
    """Return the rows of a file: RFC 4180, so a quoted field may have commas and newlines.

    Raises:
        DataError: The file cannot be read, its header cannot be used, or a quote is not closed.
    """
    with open_text(path) as file:
        first = file.peek(_HEADER_BYTES)  # type: ignore[attr-defined]
        refuse_utf16(path, first)
        delimiter = _delimiter(path, first.removeprefix(BYTE_ORDER_MARK).partition(b"\n")[0])
        if path.suffix.lower() == ".csv" and delimiter != ",":
            findings.note(path, f"its fields are separated by {_NAMES[delimiter]}")
        rows = _parsed(path, file, delimiter, findings)
        yield from blocks_of(rows, path, "line", findings)


def _delimiter(path: Path, header: bytes) -> str:
    """Choose what separates the fields.

    Raises:
        DataError: The header line does not say.
    """
    if path.suffix.lower() == ".tsv":
        if b"," in header and b"\t" not in header:
            raise DataError(f"{path}:1: the header line has commas and no tab; name it .csv")
        return "\t"
    if b"," in header:
        return ","
    found = [one for one in (";", "\t") if one.encode() in header]
    if len(found) > 1:
        raise DataError(f"{path}:1: the header line has ';' and tabs; separate fields by commas")
    return found[0] if found else ","


def _parsed(path: Path, file: IO[bytes], delimiter: str, findings: Findings) -> Iterator[Parsed]:
    # The limit is that of the whole process.
    limit_before = csv.field_size_limit(_MAX_CHARACTERS)
    # Bytes that are not UTF-8 become what JSON cannot hold: then one row is bad, not the file.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        reader = csv.reader(_lines(path, text), delimiter=delimiter, strict=True)
        table = _Table(path, _header(path, reader))
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield Parsed(line, table.bad(_problem(path, line, error)), file_position(file))
                continue
            if fields is None:
                break
            # A blank line has no fields.
            if fields:
                yield Parsed(line, table.record(line, fields), file_position(file))
        if table.num_index:
            columns = "column counts" if table.num_index == 1 else "columns count"
            findings.note(path, f"left out the index: the first {columns} the rows")
    finally:
        csv.field_size_limit(limit_before)
        # The caller, which opened the file, closes it.
        text.detach()


class _Table:
    """The names of the fields; the index that pandas writes before them is checked and left out.

    Attributes:
        num_index: Columns of the index.
    """

    def __init__(self, path: Path, header: list[str]) -> None:
        self._path, self._header = path, header
        self.num_index = 0
        while self.num_index < len(header) - 1 and _INDEX_NAME.fullmatch(header[self.num_index]):
            self.num_index += 1
        self._names = header[self.num_index :]
        twice = sorted({name for name in self._names if self._names.count(name) > 1})
        if twice or "" in self._names:
            what = f"{twice[0]!r} twice" if twice and twice[0] else "a field without a name"
            raise DataError(f"{path}:1: the header line has {what}; name each field")
        self._count = 0
        self._is_sure = True

    def record(self, line: int, fields: list[str]) -> dict[str, Any] | Unusable:
        """Return the record of a row.

        Raises:
            DataError: What should be the index does not count the rows.
        """
        if len(fields) != len(self._header):
            message = f"{len(fields)} fields; the header line has {len(self._header)}"
            return self.bad(Unusable("other_fields", message))
        if self.num_index:
            self._check_index(line, fields[: self.num_index])
        return dict(zip(self._names, fields[self.num_index :], strict=True))

    def bad(self, problem: Unusable) -> Unusable:
        """Take note of a bad row: how many rows of the table it was is not known."""
        self._is_sure = False
        return problem

    def _check_index(self, line: int, index: list[str]) -> None:
        for name, value in zip(self._header, index, strict=False):
            number = int(value) if _COUNT.fullmatch(value) else -1
            if number != self._count and (self._is_sure or number < self._count):
                column = f"column {name!r}" if name else "the first column, which has no name,"
                raise DataError(
                    f"{self._path}:{line}: {column} should count the rows from 0, as an index"
                    f" of pandas, got {value!r}; rename or remove it"
                )
            self._count, self._is_sure = number, True
        self._count += 1


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        return next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path}:1: {_problem(path, 1, error).message}") from None


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
