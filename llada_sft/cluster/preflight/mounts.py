"""File systems: where a path is mounted, and whether other nodes can see it.

Source: proc_pid_mountinfo(5).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
# Of this machine's memory: no other node ever sees it.
IN_MEMORY = frozenset({"ramfs", "tmpfs", "devtmpfs", "rootfs"})
# Of a disk of this machine, or of a container: other nodes see it only if this machine exports it.
LOCAL = frozenset(
    {"aufs", "bcachefs", "btrfs", "ecryptfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs"}
    | {"fuse.fuse-overlayfs", "fuseblk", "hfsplus", "jfs", "ntfs3", "overlay", "reiserfs"}
    | {"squashfs", "vfat", "xfs", "zfs"}
)
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Attributes:
        point: The folder at which it is mounted.
        type: As the kernel calls it.
    """

    point: str
    type: str

    def __str__(self) -> str:
        return f"{self.point} ({self.type})"


def read_mounts() -> list[Mount]:
    """Return all mounts of this process, in the order of mounting; none where that is unknown."""
    try:
        lines = os.fsdecode(_MOUNTINFO.read_bytes()).splitlines()
    except OSError:
        return []
    return [mount for line in lines if (mount := parse_mount(line))]


def parse_mount(line: str) -> Mount | None:
    """Read a line of mountinfo; None if it is something else.

    The fifth column is the mount point. The type is the first column after " - ", because the
    number of columns before it varies. Spaces in paths are written as octal numbers.
    """
    before, _, after = line.partition(" - ")
    columns, types = before.split(" "), after.split(" ")
    if len(columns) < 6 or not types[0]:
        return None
    point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), columns[4])
    return Mount(point, types[0])


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount that a path is on, which need not exist; of two at one point the later."""
    real = Path(os.path.realpath(path))
    holding = [mount for mount in mounts if real.is_relative_to(mount.point)]
    # `max` returns the first of equals.
    return max(reversed(holding), key=lambda mount: len(mount.point), default=None)
