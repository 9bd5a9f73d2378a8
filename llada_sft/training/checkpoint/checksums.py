"""Checksums of a checkpoint's files: taken while they are written, compared when they are read.

torch.load does not verify the CRC that a torch file carries: a flipped bit becomes a wrong weight.
xxh3_128 is several times faster than a disk, and long enough that no damage matches by chance.
"""

import mmap
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import IO, NamedTuple

from xxhash import xxh3_128, xxh3_128_hexdigest

# Bytes of one read: large enough for a network file system.
_BUFFER_BYTES = 16 << 20
# Bytes of one write: what counts as progress.
_PIECE_BYTES = 64 << 20
# Fewer bytes than this are hashed faster in this thread than in another one.
_HASHED_AT_ONCE = 1 << 20


class FileRecord(NamedTuple):
    """A file's size in bytes, and its checksum in hexadecimal digits."""

    size: int
    checksum: str

    @staticmethod
    def of(content: bytes) -> "FileRecord":
        return FileRecord(len(content), xxh3_128_hexdigest(content))


class HashingFile:
    """Passes what is written to a file and takes its checksum: the file is not read again.

    torch.save only appends: it needs `write` and `flush`, never `seek`. A tensor is hashed by
    another thread while it is written: hashing adds next to nothing to the time of a save.

    Args:
        file: Takes the bytes.
        hasher: A pool of one thread.
        advanced: Called with the number of bytes of each piece that was written.
    """

    def __init__(
        self,
        file: IO[bytes],
        hasher: Executor,
        advanced: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        self._file, self._hasher, self._advanced = file, hasher, advanced
        self._hash, self._size = xxh3_128(), 0

    def write(self, data: bytes) -> int:
        whole = memoryview(data).cast("B")
        self._size += whole.nbytes
        if whole.nbytes < _HASHED_AT_ONCE:
            self._hash.update(whole)
            self._file.write(whole)
            self._advanced(whole.nbytes)
            return whole.nbytes
        hashed = self._hasher.submit(self._hash.update, whole)
        try:
            for start in range(0, whole.nbytes, _PIECE_BYTES):
                self._advanced(self._file.write(whole[start : start + _PIECE_BYTES]))
        finally:
            # torch frees the memory as soon as this returns.
            hashed.result()
        return whole.nbytes

    def flush(self) -> None:
        self._file.flush()

    @property
    def record(self) -> FileRecord:
        return FileRecord(self._size, self._hash.hexdigest())


def record_of_file(path: Path, pulse: Callable[[], None] = lambda: None) -> tuple[FileRecord, bool]:
    """Read a file for its size and checksum.

    Args:
        path: The file.
        pulse: Called now and then, because reading may take long.

    Returns:
        The record, and whether the file holds nothing but zeros.

    Raises:
        OSError: The file cannot be read.
    """
    summed, size, zeros = xxh3_128(), 0, True
    # Page-aligned memory: reading to an odd address is six times slower on some processors.
    with mmap.mmap(-1, _BUFFER_BYTES) as buffer, path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := file.readinto(buffer):
            with memoryview(buffer)[:count] as read:
                summed.update(read)
                zeros = zeros and read[0] == 0 and bytes(read) == bytes(count)
            size += count
            pulse()
    return FileRecord(size, summed.hexdigest()), zeros and size > 0
