"""Files that are replaced at once, and the wait until what was written is on the disk.

A file is written next to its place and then renamed into it: what another process reads meanwhile,
and what a crash leaves, is the old file or the new one, never half of one. A rename alone does not
say when the bytes are on the disk: if a power cut must not take them, they are synced first.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` to write to; the file written there then replaces `path`.

    If the block fails, `path` is what it was. Only one process may do this at a time.
    """
    partial = partial_of(path)
    yield partial
    partial.replace(path)


def partial_of(path: Path) -> Path:
    """Return the path next to `path` at which its new content is written."""
    return path.with_name(f"{path.name}.partial")


def write_synced(path: Path, text: str) -> None:
    """Write a text, and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        sync_file(file)


def sync_file(file: IO[Any]) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        # Some file systems cannot do this with a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(file)
