"""Deals rows out to shards of one size, and writes these: plain, or in frames that are compressed.

Each next piece goes to the shard with the fewest bytes. A piece is one row, or as many as make one
percent of that shard: so no two shards ever differ by more than one percent and one row, however
much is still to come, and each shard has rows from the start to the end of the input.
"""

import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from heapq import heapreplace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from llada_sft.errors import ConfigError
from llada_sft.sharding.blocks import RowBlock, Text
from llada_sft.sharding.folder import cannot_be_written, writing

Compress = Literal["zst", "gz"]
_PIECES = 100
# ext4 may take many times as long for the bytes of a larger write.
_MAX_PIECE_BYTES = 1 << 18
# What waits to be compressed: of all shards together, and of one.
_WAITING_BYTES = 2**26
_MIN_FRAME_BYTES, _MAX_FRAME_BYTES = 2**14, 2**22
_ZSTD_LEVEL, _GZIP_LEVEL = 3, 2
# Other files that the process has open; and room for more, if it has more of them open.
_OTHER_FILES, _MARGIN = 64, 16


def output_name(number: int, num_shards: int, compress: Compress | None) -> str:
    """Return the name of a shard; sorted by name, shards are sorted by number."""
    digits = max(5, len(str(num_shards - 1)))
    return f"shard_{number:0{digits}}.jsonl" + (f".{compress}" if compress else "")


class ShardFiles:
    """All shards of a folder, open for writing.

    One compressor serves all: each shard is a row of complete frames, as every reader of .gz and
    .zst takes them, so what waits in memory does not grow with the number of shards.

    Raises:
        ConfigError: The process may not open this number of files.
        DataError: A file cannot be written, here or in any method.
    """

    def __init__(self, folder: Path, num_shards: int, compress: Compress | None) -> None:
        _allow_open_files(num_shards)
        self.num_shards, self._compress = num_shards, compress
        names = [output_name(number, num_shards, compress) for number in range(num_shards)]
        self._paths = [folder / name for name in names]
        self._descriptors: list[int] = []
        self._waiting = [bytearray() for _ in names] if compress else []
        share = _WAITING_BYTES // num_shards
        self._frame_bytes = max(_MIN_FRAME_BYTES, min(_MAX_FRAME_BYTES, share))

    def __enter__(self) -> Self:
        for path in self._paths:
            with writing(path):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                self._descriptors.append(descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Not all are closed only if there is an error already.
        for descriptor in self._descriptors:
            with suppress(OSError):
                os.close(descriptor)

    def write(self, shard: int, pieces: Sequence[Text]) -> None:
        """Add pieces of rows to a shard."""
        rows = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._compress is None:
            self._put(shard, rows)
            return
        if len(self._waiting[shard]) + len(rows) >= self._frame_bytes:
            self._end_frame(shard)
        if len(rows) >= self._frame_bytes:
            self._put(shard, _compressed(rows, self._compress))
        else:
            self._waiting[shard] += rows

    def finish(self) -> None:
        """Write what still waits, and close all files."""
        for shard in range(len(self._waiting)):
            self._end_frame(shard)
        for path in self._paths:
            # A file server may say only now that there is no room.
            with writing(path):
                os.close(self._descriptors.pop(0))

    def _end_frame(self, shard: int) -> None:
        if self._waiting[shard]:
            self._put(shard, _compressed(self._waiting[shard], self._compress))
            self._waiting[shard].clear()

    def _put(self, shard: int, data: Text) -> None:
        written = 0
        try:
            while written < len(data):
                # A full disk takes a part, and says why it does not take the rest.
                part = data[written : written + _MAX_PIECE_BYTES]
                written += os.write(self._descriptors[shard], part)
        except OSError as error:
            raise cannot_be_written(self._paths[shard], error) from None


class Dealer:
    """Deals out to the shards of `files`.

    Attributes:
        num_rows: Rows that were dealt out.
    """

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        # Of two with the same bytes, the first: the result depends on nothing but the rows.
        self._heap = [(0, shard) for shard in range(files.num_shards)]
        self.num_rows = 0

    @property
    def sizes(self) -> list[int]:
        """Bytes of rows that each shard has, before they are compressed."""
        return [size for size, _ in sorted(self._heap, key=lambda entry: entry[1])]

    def deal(self, block: RowBlock) -> None:
        """Write the rows of a block.

        Raises:
            DataError: They cannot be written.
        """
        text, ends, heap = block.text, block.ends, self._heap
        # Pieces are small at first: those of a shard are written together.
        pieces: dict[int, list[Text]] = {}
        row = start = 0
        while row < len(ends):
            size, shard = heap[0]
            most = start + min(size // _PIECES, _MAX_PIECE_BYTES)
            # At least one row.
            row = max(row + 1, int(ends.searchsorted(most, side="right")))
            end = int(ends[row - 1])
            pieces.setdefault(shard, []).append(text[start:end])
            heapreplace(heap, (size + end - start, shard))
            start = end
        for shard, of_shard in pieces.items():
            self._files.write(shard, of_shard)
        self.num_rows += len(ends)


def _compressed(text: Text | bytearray, compress: Compress | None) -> bytes:
    if compress == "gz":
        from isal import igzip

        return igzip.compress(text, _GZIP_LEVEL)
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    # Like the command's: with a checksum, damage is noticed when the shard is read.
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: _ZSTD_LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    frame: bytes = zstd.compress(text, options=options)
    return frame


def _allow_open_files(num_shards: int) -> None:
    """Raise this process's limit of open files, if that is needed and may be done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_shards + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"--num-shards: {num_shards:,}: this process may open only {hard - _OTHER_FILES:,}"
            " files at once; make fewer shards"
        )
    # More may be open already, if this runs inside a program of the user.
    needed = max(needed, num_shards + len(os.listdir("/proc/self/fd")) + _MARGIN)  # noqa: PTH208
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
