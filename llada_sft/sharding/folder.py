"""A folder that appears as a whole or not at all.

It is written next to its place, in `.NAME.partial`, and renamed when all is done: whatever kills
the process before that leaves nothing with the folder's name. The process holds a lock on it, so
that the next one can tell what a killed process left, which is removed, from what is being written.

Nothing is forced onto the disk, which would take longer than all the rest: as with `cp`, only the
machine's own end in the seconds after may take something away again.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llada_sft.errors import DataError


def cannot_be_written(path: Path, error: OSError) -> DataError:
    """Return the line that says why something cannot be written."""
    return DataError(
        f"{path}: cannot be written: {error.strerror};"
        " make room or name another folder, and start again"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a line that says why something cannot be written.

    Raises:
        DataError: Instead of the block's OSError.
    """
    try:
        yield
    except OSError as error:
        raise cannot_be_written(path, error) from None


def check_new(folder: Path) -> None:
    """Check that nothing would be written over.

    Raises:
        DataError: There is something already.
    """
    with writing(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise DataError(f"{folder}: is there already and is not a folder; name a new folder")
        if next(folder.iterdir(), None) is not None:
            raise DataError(f"{folder}: is there already; remove it or name a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Return a place to write to, and make it the folder when the block has ended.

    Args:
        folder: Its name. It must not be there, or be empty.

    Raises:
        DataError: It is there already, it cannot be written, or another process writes it.
    """
    check_new(folder)
    place = folder.resolve()
    partial = place.parent / f".{place.name}.partial"
    with writing(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(partial)
    try:
        _empty(partial)
        yield partial
        check_new(folder)
        with writing(folder):
            partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _locked(partial: Path) -> int:
    """Make the folder, or take over one that is left, and lock it."""
    is_new = True
    try:
        partial.mkdir()
    except FileExistsError:
        is_new = False
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been renamed since it was opened.
        free = partial.exists() and os.path.samestat(partial.stat(), os.fstat(descriptor))
    except BlockingIOError:
        free = False
    except OSError:
        # A file system without locks: only a folder of our own is surely nobody else's.
        free = is_new
    if not free:
        os.close(descriptor)
        raise DataError(
            f"{partial}: another process writes here, or has left this; wait for it or remove it"
        )
    return descriptor


def _empty(partial: Path) -> None:
    with writing(partial):
        for path in partial.iterdir():
            path.unlink()
