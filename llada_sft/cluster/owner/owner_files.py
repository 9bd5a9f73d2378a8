"""The files `owner.1`, `owner.2`, … of a run directory: the highest number is the owner.

A file is written under another name and linked to the next number: link(2) fails if the number is
taken, also on NFS, so that only one of several claimants gets it. A lock (flock) does not work on
every file system, and does not show who holds it. The highest file is never removed, so that no
number is the highest twice.

All times are those of the file server: the clocks of hosts may differ by hours.
"""

import errno
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llada_sft import atomic
from llada_sft.cluster import run_files
from llada_sft.cluster.owner.identity import Owner

_NAME = re.compile(r"owner\.([1-9]\d*)")
# How many of the highest files are kept: the earlier ones show people what happened.
KEPT = 4
# Temporary files of killed claimants are removed after this time.
LEFTOVER_S = 3600
_MAX_BYTES = 1 << 16
# Errors of file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(frozen=True)
class OwnerFile:
    """An owner file as it was found.

    Attributes:
        number: The file is named owner.NUMBER; 0 if there is none.
        owner: The content of the file; None if there is no file, or it cannot be read.
        silent_s: Seconds since the file was touched.
    """

    number: int
    owner: Owner | None
    silent_s: float = 0.0


def highest(folder: Path) -> int:
    """Return the number of the highest owner file; 0 if there is none.

    Raises:
        OSError: The folder cannot be read.
    """
    return max(_numbers(folder), default=0)


def refresh(folder: Path) -> None:
    """Make an NFS client list a folder as it is now: it may list from its cache for up to a minute.

    The server's answer to this change tells the client that its cache is outdated.
    """
    with suppress(OSError):
        os.utime(folder)


def read(folder: Path, number: int) -> Owner | None:
    """Read an owner file; None if it cannot be read, or is not one."""
    try:
        content = json.loads(run_files.read_start(_path(folder, number), _MAX_BYTES))
        return Owner.from_json(content)
    except (OSError, ValueError, RecursionError):
        return None


def find(folder: Path) -> OwnerFile:
    """Return the highest owner file, and how long ago it was touched.

    Raises:
        OSError: The folder cannot be read or written.
    """
    now = server_time(folder)
    number = highest(folder)
    if number == 0:
        return OwnerFile(0, None)
    try:
        # Opened first, so that an NFS client takes the time from the server instead of its cache.
        with run_files.open_regular(_path(folder, number)) as file:
            touched = os.fstat(file.fileno()).st_mtime
    except OSError:
        touched = _path(folder, number).lstat().st_mtime
    return OwnerFile(number, read(folder, number), now - touched)


def server_time(folder: Path) -> float:
    """Return the present time by the clock that dates the files of a folder.

    Raises:
        OSError: The folder cannot be written.
    """
    probe = _temporary(folder, os.urandom(8).hex())
    try:
        with probe.open("xb"):
            os.utime(probe)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def create(folder: Path, number: int, owner: Owner) -> bool:
    """Create an owner file, whole or not at all; False where another claimant was first.

    Raises:
        OSError: The file cannot be written.
    """
    partial, path = _temporary(folder, owner.token), _path(folder, number)
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(json.dumps(owner.to_json(), indent=1) + "\n")
            atomic.sync_file(file)
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno in _NO_LINKS:
                _create_without_link(partial, path)
            # An NFS server may have created the link although its reply was lost.
            elif not os.path.lexists(path):
                raise
    finally:
        partial.unlink(missing_ok=True)
    winner = read(folder, number)
    return winner is not None and winner.token == owner.token and highest(folder) == number


def touch(folder: Path, number: int) -> None:
    """Write a heartbeat, dated by the file server."""
    with suppress(OSError):
        os.utime(_path(folder, number))


def tidy(folder: Path) -> None:
    """Remove old owner files, and temporary files of killed claimants; never the highest file."""
    with suppress(OSError):
        for number in sorted(_numbers(folder))[:-KEPT]:
            _path(folder, number).unlink(missing_ok=True)
        leftovers = list(folder.glob(_temporary(folder, "*").name))
        now = server_time(folder) if leftovers else 0.0
        for path in leftovers:
            if now - path.lstat().st_mtime > LEFTOVER_S:
                path.unlink(missing_ok=True)


def _create_without_link(partial: Path, path: Path) -> None:
    with suppress(FileExistsError), path.open("xb") as file:
        file.write(partial.read_bytes())
        atomic.sync_file(file)


def _numbers(folder: Path) -> list[int]:
    names = os.listdir(folder)  # noqa: PTH208 (called before each write: names are enough)
    return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]


def _path(folder: Path, number: int) -> Path:
    return folder / f"owner.{number}"


def _temporary(folder: Path, word: str) -> Path:
    return folder / f".owner.{word}.partial"
