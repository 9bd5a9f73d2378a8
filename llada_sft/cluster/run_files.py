"""Reads the files of a run for a person, whatever state they are in.

A run directory may be half copied, damaged by a full disk, or written to by something else. What is
read here is bounded, never waits (a named pipe would wait for a writer for ever), and is safe to
print on a terminal.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# Only the end of a longer file is read.
MAX_BYTES = 64 << 20
MAX_LINE_CHARACTERS = 2000


def read_end(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the last bytes of a regular file.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - max_bytes))
        return file.read(max_bytes)


def read_start(path: Path, max_bytes: int) -> bytes:
    """Return the first bytes of a regular file.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        return file.read(max_bytes)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; not a folder, a device or a pipe, and without waiting.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        what = os.strerror(number) if stat.S_ISDIR(mode) else "not a regular file"
        raise OSError(number, what, str(path))
    return os.fdopen(handle, "rb")


def printable(text: str) -> str:
    """Return a line without control characters, and not too long for a terminal."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= MAX_LINE_CHARACTERS else f"{shown[:MAX_LINE_CHARACTERS]}..."
