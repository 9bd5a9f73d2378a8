"""One line of a shard."""

from typing import NamedTuple

# A longer line is never read whole: it is a bad row.
MAX_LINE_BYTES = 64 * 2**20


class Row(NamedTuple):
    """One line of a shard: `line` counts from 1, `byte` from 0, in the text if it is compressed.

    `file` is the shard's name, which keys noise and order; `path` is what messages call it. A line
    longer than MAX_LINE_BYTES has no `text`, but `num_bytes`.
    """

    file: str
    line: int
    byte: int
    text: bytes
    path: str
    num_bytes: int | None = None

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line} (byte {self.byte})"
