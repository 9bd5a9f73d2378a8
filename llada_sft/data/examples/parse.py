"""A row -> its JSON value, or why it is none: a damaged disk, another encoding, or neither."""

import orjson

from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.rows.bad_row import nul_byte, too_long_line
from llada_sft.data.rows.json_value import parse_json
from llada_sft.data.rows.row import Row
from llada_sft.data.storage.files import BYTE_ORDER_MARK


def parse_row(row: Row) -> object:
    """Return the JSON value of a row.

    Raises:
        BadRowError: It has none.
    """
    if row.num_bytes is not None:
        raise BadRowError(row, *too_long_line(row.num_bytes))
    text = row.text.removeprefix(BYTE_ORDER_MARK) if row.byte == 0 else row.text
    try:
        return parse_json(text)
    except orjson.JSONDecodeError as error:
        raise _not_json(row, text, error) from None


def _not_json(row: Row, text: bytes, error: orjson.JSONDecodeError) -> BadRowError:
    try:
        text.decode()
    except UnicodeDecodeError as undecodable:
        byte = text[undecodable.start]
        message = f"not UTF-8: byte 0x{byte:02x} at {undecodable.start} of the line"
        return BadRowError(row, "not_utf8", message)
    if b"\0" in text:
        return BadRowError(row, *nul_byte(text))
    return BadRowError(row, "not_json", f"not JSON: {error.msg}")
