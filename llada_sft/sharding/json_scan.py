"""Finds where the values of a text of JSON end, without parsing them, however long the text is.

Only brackets and strings are looked at: a value that is not JSON between its brackets is found as
a whole, so that it is one bad row and not the end of the file. The parser judges it. Where Python's
own parser finds an end, which is much faster, that is the end.
"""

import io
import json
import re
from typing import Protocol

from llada_sft.data.rows.bad_row import too_long_line
from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.sharding.json_lines import Unusable, json_value

_PIECE_BYTES = 1 << 18
_SPACE = re.compile(rb"[ \t\n\r]*+")
_BRACKET_OR_QUOTE = re.compile(rb'[][{}"]')
_SCALAR = re.compile(rb'[^][{},:"\s]*+')
_OPEN, _QUOTE, _BACKSLASH = b"[{", b'"', 0x5C

# Control bytes do not matter for where a string ends.
_DECODER = json.JSONDecoder(strict=False)


class Readable(Protocol):
    """Where the text comes from."""

    def read(self, size: int, /) -> bytes: ...


class NotJsonError(Exception):
    """The text cannot be read on; the message says why."""


class JsonScanner:
    """Reads a text from value to value.

    Args:
        source: The text.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._text = bytearray()
        # The next byte; and where the value starts that is to be returned, if one is.
        self._at, self._start = 0, -1
        # Bytes of that value that were dropped, as it is too long.
        self._dropped = 0
        # The text as Python's parser takes it: a character for each byte. None if it has changed.
        self._characters: str | None = None

    def peek(self) -> bytes:
        """Return the next byte that is not blank, and stay before it; nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match
            self._at = match.end()
            if self._at < len(self._text):
                return bytes(self._text[self._at : self._at + 1])
            if not self._read_more():
                return b""

    def look_ahead(self, size: int) -> bytes:
        """Return the next bytes, and stay before them; fewer only at the end."""
        while len(self._text) - self._at < size and self._read_more():
            pass
        return bytes(self._text[self._at : self._at + size])

    def expect(self, one_of: bytes) -> None:
        """Check that the next byte that is not blank is one of these, and stay before it.

        Raises:
            NotJsonError: It is another one.
        """
        found = self.peek()
        if not found or found not in one_of:
            wanted = " or ".join(repr(chr(byte)) for byte in one_of)
            raise NotJsonError(f"{_shown(found)} where {wanted} should be")

    def expect_end(self) -> None:
        """Check that nothing follows.

        Raises:
            NotJsonError: Something does.
        """
        if found := self.peek():
            raise NotJsonError(f"{_shown(found)} where the file should end")

    def take(self, one_of: bytes) -> bytes:
        """Return the next byte that is not blank, which must be one of these.

        Raises:
            NotJsonError: It is another one.
        """
        self.expect(one_of)
        self._at += 1
        return bytes(self._text[self._at - 1 : self._at])

    def value(self) -> bytes | Unusable:
        """Return the text of the next value, or that it is too long for a row.

        Raises:
            NotJsonError: There is none, or it does not end.
        """
        self.peek()
        self._start, self._dropped = self._at, 0
        self._at = self._end_if_read() or self._at
        if self._at == self._start:
            self._pass_value()
        start, self._start = self._start, -1
        if start < 0:
            return Unusable(*too_long_line(self._dropped + self._at))
        return bytes(self._text[start : self._at])

    def _end_if_read(self) -> int | None:
        """Return where a list or an object ends; None if it is not JSON or not read to its end."""
        if not self._text.startswith((b"{", b"["), self._at):
            return None
        if self._characters is None:
            self._characters = self._text.decode("latin-1")
        try:
            end = _DECODER.raw_decode(self._characters, self._at)[1]
        except (ValueError, RecursionError):
            return None
        return end

    def skip_value(self) -> None:
        """Go to the end of the next value.

        Raises:
            NotJsonError: There is none, or it does not end.
        """
        self.peek()
        self._pass_value()

    def _pass_value(self) -> None:
        first = self.peek()
        if first and first in _OPEN:
            self._pass_nested()
        elif first == _QUOTE:
            self._at += 1
            self._pass_string()
        else:
            self._pass_scalar()

    def _pass_nested(self) -> None:
        depth = 0
        while True:
            byte = self._next_bracket_or_quote()
            if byte == _QUOTE:
                self._pass_string()
            elif byte in _OPEN:
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    return

    def _next_bracket_or_quote(self) -> bytes:
        while not (match := _BRACKET_OR_QUOTE.search(self._text, self._at)):
            self._at = len(self._text)
            if not self._read_more():
                raise NotJsonError("the file ends within a list or an object")
        self._at = match.end()
        return match.group()

    def _pass_string(self) -> None:
        while True:
            quote = self._text.find(_QUOTE, self._at)
            end = quote if quote >= 0 else len(self._text)
            escape = end
            while escape > self._at and self._text[escape - 1] == _BACKSLASH:
                escape -= 1
            if quote < 0:
                # The backslashes at the end belong to what is read next.
                self._at = escape
                if not self._read_more():
                    raise NotJsonError("the file ends within a string")
                continue
            self._at = quote + 1
            if (quote - escape) % 2 == 0:
                return

    def _pass_scalar(self) -> None:
        is_empty = True
        while True:
            match = _SCALAR.match(self._text, self._at)
            assert match
            is_empty = is_empty and match.end() == match.start()
            self._at = match.end()
            if self._at < len(self._text) or not self._read_more():
                break
        if is_empty:
            raise NotJsonError(f"{_shown(self.peek())} where a value should be")

    def _read_more(self) -> bool:
        """Read the next piece; forget what is behind."""
        if self._start >= 0 and self._at - self._start > MAX_LINE_BYTES:
            self._start, self._dropped = -1, -self._start
        behind = self._at if self._start < 0 else self._start
        del self._text[:behind]
        self._at -= behind
        self._dropped += behind
        if self._start >= 0:
            self._start = 0
        self._characters = None
        piece = self._source.read(_PIECE_BYTES)
        self._text += piece
        return bool(piece)


def is_array_of_objects(text: bytes) -> bool:
    """Return whether a text of JSON is a list of rows."""
    value = json_value(text)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def spans_lines(text: bytes) -> bool:
    """Return whether the first value of a text is a list or an object that its first line begins.

    Of a list, only the first element must be complete.
    """
    if _is_json(text.partition(b"\n")[0]):
        return False
    scanner = JsonScanner(io.BytesIO(text))
    try:
        if text.startswith(b"["):
            scanner.take(b"[")
            return _is_json(scanner.value())
        value = scanner.value()
    except NotJsonError:
        return False
    return text.startswith(b"{") and b"\n" in value and _is_json(value)


def _is_json(text: bytes | Unusable) -> bool:
    return not isinstance(text, Unusable) and not isinstance(json_value(text), Unusable)


def _shown(byte: bytes) -> str:
    return repr(chr(byte[0])) if byte else "the end of the file"
