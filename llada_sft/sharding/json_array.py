"""The rows of .json: one array of objects, read piece by piece however long it is.

The array may also be the one list of objects in an object: `{"version": 1, "data": [...]}`. Other
objects are tables or single records; they are refused with a line that says what they are.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import orjson

from llada_sft.data.storage.files import BYTE_ORDER_MARK, open_text
from llada_sft.errors import DataError
from llada_sft.sharding.blocks import RowBlock, file_position, refuse_utf16
from llada_sft.sharding.findings import Findings
from llada_sft.sharding.json_lines import Parsed, Unusable, blocks_of, json_value
from llada_sft.sharding.json_scan import JsonScanner, NotJsonError

_FIRST_BYTES = 1 << 16
# The list of these fields is one conversation, not the rows of a file.
_CONVERSATIONS = ("messages", "conversations", "conversation")
_LOOK_AHEAD = 1 << 10
_LIST_OF_OBJECTS = re.compile(rb"\[\s*\{")
# A list of something else; `{"0": ..., "1": ...}`, as pandas writes a column.
_VALUES_OF_ROWS = re.compile(rb"\[\s*[^\]\s]|\{\s*\"\d+\"\s*:")
_NAMES_SHOWN = 5
_TABLE = 'write it with pandas: df.to_json("new.jsonl", orient="records", lines=True)'


def read_json(path: Path, findings: Findings) -> Iterator[RowBlock]:
    """Return the rows of a file.

    Raises:
        DataError: The file cannot be read, or is neither an array of JSON nor an object with one.
    """
    with open_text(path) as file:
        _check_beginning(path, file)
        yield from blocks_of(_File(path, file, findings).rows(), path, "row", findings)


def _check_beginning(path: Path, file: IO[bytes]) -> None:
    first: bytes = file.peek(_FIRST_BYTES)  # type: ignore[attr-defined]
    refuse_utf16(path, first)
    if first.startswith(BYTE_ORDER_MARK):
        file.read(len(BYTE_ORDER_MARK))
    first = first.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not first.startswith((b"[", b"{")):
        what = f"starts with {chr(first[0])!r}" if first else "is empty"
        raise DataError(
            f"{path}: is not a JSON array: {what}; name it .jsonl if each line is a row"
        )
    line, _, rest = first.partition(b"\n")
    if rest.strip() and _is_object(line):
        raise DataError(f"{path}: has one object on each line, not one JSON array; name it .jsonl")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


class _File:
    """A file whose rows are read: its text, and how many rows it gave."""

    def __init__(self, path: Path, file: IO[bytes], findings: Findings) -> None:
        self._path, self._file, self._findings = path, file, findings
        self._text = JsonScanner(file)
        self._row = 0

    def rows(self) -> Iterator[Parsed]:
        try:
            yield from self._array() if self._text.peek() == b"[" else self._object()
            self._text.expect_end()
        except NotJsonError as error:
            raise self._error(f"not JSON after row {self._row:,}: {error}") from None

    def _array(self) -> Iterator[Parsed]:
        text = self._text
        text.take(b"[")
        if text.peek() == b"]":
            text.take(b"]")
            return
        while True:
            value = text.value()
            self._row += 1
            record = value if isinstance(value, Unusable) else json_value(value)
            if not isinstance(record, dict | Unusable):
                kind = type(record).__name__
                record = Unusable("not_an_object", f"a row must be a JSON object, got {kind}")
            yield Parsed(self._row, record, file_position(self._file))
            if text.take(b",]") == b"]":
                return

    def _object(self) -> Iterator[Parsed]:
        text, rows_in = self._text, ""
        lists: list[str] = []
        others: list[str] = []
        text.take(b"{")
        while text.peek() != b"}":
            name = self._name()
            kind = _kind_of_value(name, text)
            if kind == "rows" and not lists:
                rows_in = name
                yield from self._array()
            else:
                text.skip_value()
            (others if kind == "other" else lists).append(name)
            if text.peek() != b"}":
                text.take(b",")
        text.take(b"}")
        if text.peek() == b"{":
            raise self._error(
                "has several objects, not one array; name it .jsonl if each is on one line, else"
                " make it an array with  jq -s ."
            )
        self._check_lists(rows_in, lists)
        if others:
            names = ", ".join(map(repr, others))
            self._findings.note(self._path, f"the rows are those of {rows_in!r}; not read: {names}")

    def _name(self) -> str:
        self._text.expect(b'"')
        name = self._text.value()
        self._text.take(b":")
        self._text.peek()
        return str(name if isinstance(name, Unusable) else json_value(name))

    def _check_lists(self, rows_in: str, lists: list[str]) -> None:
        """Check that there is one list, that of the rows."""
        if rows_in and len(lists) == 1:
            return
        names = ", ".join(map(repr, lists[:_NAMES_SHOWN])) + ", ..." * (len(lists) > _NAMES_SHOWN)
        if rows_in:
            raise self._error(f"has more than one list ({names}); keep only that of the rows")
        if lists:
            raise self._error(f"is a table by columns or index ({names}), not rows; {_TABLE}")
        raise self._error("is an object without a list of objects; write rows as [{...}, {...}]")

    def _error(self, what: str) -> DataError:
        return DataError(f"{self._path}: {what}")


def _kind_of_value(name: str, text: JsonScanner) -> Literal["rows", "list", "other"]:
    """Say what the next value is: a list of objects, something that has a value for each row."""
    beginning = text.look_ahead(_LOOK_AHEAD)
    if _LIST_OF_OBJECTS.match(beginning):
        return "other" if name in _CONVERSATIONS else "rows"
    by_index = name.isdecimal() and beginning.startswith(b"{")
    return "list" if by_index or _VALUES_OF_ROWS.match(beginning) else "other"
