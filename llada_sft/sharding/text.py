"""What all readers of text need of a file."""

import os
from pathlib import Path
from typing import IO

from llada_sft.errors import DataError


def refuse_utf16(path: Path, first: bytes) -> None:
    """Refuse what some spreadsheets write.

    Raises:
        DataError: The file starts with the mark of UTF-16.
    """
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")


def file_position(file: IO[bytes]) -> int:
    """Return how much of the stored file was read; of a compressed one, not of its text."""
    return os.lseek(file.fileno(), 0, os.SEEK_CUR)
