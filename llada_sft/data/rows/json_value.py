"""Text of a row -> its JSON value."""

import json
from typing import Any

import orjson

# What orjson takes for an integer; it reads others as floats.
_INTEGERS = range(-(2**63), 2**64)


def _integer(text: str) -> int | float:
    number = int(text)
    return number if number in _INTEGERS else float(number)


def parse_json(text: bytes) -> Any:
    """Parse JSON; NaN and Infinity, which Python writes and JSON does not have, become null.

    Raises:
        orjson.JSONDecodeError: It is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if b"NaN" in text or b"Infinity" in text:
            try:
                value = json.loads(text, parse_constant=lambda _: None, parse_int=_integer)
                # Python also takes halves of surrogate pairs; orjson does not.
                return orjson.loads(orjson.dumps(value))
            except (ValueError, TypeError, OverflowError, RecursionError):
                pass
        raise error from None
