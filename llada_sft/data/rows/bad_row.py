"""A row that cannot be used: where it is and why, in one line."""

from typing import Literal, NamedTuple

from llada_sft.data.rows.row import MAX_LINE_BYTES

# How many bad rows are shown with their place.
SHOWN = 5
# A message may quote a whole record.
MAX_MESSAGE = 500


class BadRow(NamedTuple):
    """A row that cannot be used.

    Attributes:
        file: As messages call it.
        number: Its line or row, from 1.
        byte: Where it starts, in the text if that is compressed; None if that is not known.
        reason: One word.
        message: What is wrong.
        unit: What `number` counts: lines of a text, else rows.
    """

    file: str
    number: int
    byte: int | None
    reason: str
    message: str
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        place = f":{self.number}" if self.unit == "line" else f": row {self.number}"
        byte = "" if self.byte is None else f" (byte {self.byte})"
        return f"{self.file}{place}{byte}: {self.message}"

    def to_json(self) -> dict[str, str | int | None]:
        """Return what files and reports hold of it."""
        place = {"file": self.file, self.unit: self.number, "byte": self.byte}
        return {**place, "reason": self.reason, "message": self.message}


def shortened(message: str) -> str:
    """Return at most 500 characters of a message, and " ..." if there are more."""
    return message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + " ..."


def too_long_line(num_bytes: int) -> tuple[Literal["line_too_long"], str]:
    """Return reason and message for a line that is too long."""
    return "line_too_long", f"a line of {num_bytes:,} bytes; {MAX_LINE_BYTES:,} are allowed"


def nul_byte(line: bytes) -> tuple[Literal["nul_byte"], str]:
    """Return reason and message for a line with a NUL byte, which JSON does not have."""
    return "nul_byte", f"a NUL byte at {line.index(0)} of the line; the file may be damaged"
