"""All rows in a random order that a seed says, however many they are, in little memory.

1. Each row goes to one of several buckets, files next to the shards, drawn at random.
2. Each bucket is read, its rows are brought into a random order, and it is removed. A bucket that
   is too large to be read is first dealt out to buckets of its own in the same way.

The draws are independent of each other, so every order of all rows is as likely as any other.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.sharding.blocks import BLOCK_BYTES, RowBlock, Text, ahead, block_of
from llada_sft.sharding.folder import writing
from llada_sft.sharding.progress import progress

BUCKET_BYTES = 2**25
# Not less: one of a single row cannot be split.
MAX_BUCKET_BYTES = MAX_LINE_BYTES
# All are open at once.
_MAX_BUCKETS = 512
_BUFFER_BYTES = 2**16
_LINE_END = 0x0A


def shuffled(
    blocks: Iterator[RowBlock], folder: Path, seed: int, num_bytes: int
) -> Iterator[RowBlock]:
    """Read all blocks, and then give their rows in a random order.

    Args:
        blocks: The rows.
        folder: Where buckets may be written; they take as much room as the rows.
        seed: Says the order, together with the rows and `num_bytes`.
        num_bytes: About how many bytes the rows have.

    Raises:
        DataError: A bucket cannot be written or read.
    """
    random = np.random.Generator(np.random.Philox(seed))
    with writing(folder), closing(ahead(blocks)) as coming:
        buckets = _scatter(coming, folder / "bucket", num_bytes, random)
    return _gather(buckets, random)


def _gather(buckets: list[Path], random: np.random.Generator) -> Iterator[RowBlock]:
    with writing(buckets[0].parent):
        sizes = [bucket.stat().st_size for bucket in buckets]
        with progress("shuffling", sum(sizes)) as show:
            for bucket, done in zip(buckets, accumulate(sizes), strict=True):
                yield from _in_random_order(bucket, random)
                show(done)


def _scatter(
    blocks: Iterator[RowBlock], name: Path, num_bytes: int, random: np.random.Generator
) -> list[Path]:
    """Deal rows out to buckets of about BUCKET_BYTES."""
    num_buckets = max(1, min(_MAX_BUCKETS, num_bytes // BUCKET_BYTES + 1))
    paths = [name.with_name(f"{name.name}_{number}") for number in range(num_buckets)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb", _BUFFER_BYTES)) for path in paths]
        for block in blocks:
            # One draw for each row, so that they do not depend on what makes a block.
            drawn = (random.random(len(block.ends)) * num_buckets).astype(np.int64)
            order = np.argsort(drawn, kind="stable")
            rows = _rows(block, order)
            cuts = np.searchsorted(drawn[order], np.arange(num_buckets + 1))
            for bucket in np.flatnonzero(np.diff(cuts)):
                files[bucket].writelines(rows[cuts[bucket] : cuts[bucket + 1]])
    return paths


def _rows(block: RowBlock, numbers: NDArray[np.integer]) -> list[Text]:
    ends = block.ends[numbers]
    starts = np.where(numbers > 0, block.ends[np.maximum(numbers, 1) - 1], 0)
    text = block.text
    return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _in_random_order(bucket: Path, random: np.random.Generator) -> Iterator[RowBlock]:
    """Return the rows of a bucket, and remove it."""
    size = bucket.stat().st_size
    if size > MAX_BUCKET_BYTES:
        parts = _scatter(_blocks(bucket), bucket, size, random)
        bucket.unlink()
        for part in parts:
            yield from _in_random_order(part, random)
        return
    text = bucket.read_bytes()
    bucket.unlink()
    whole = RowBlock(memoryview(text), _row_ends(text), 0)
    order = np.arange(len(whole.ends), dtype=np.uint32)
    random.shuffle(order)
    # Not all at once: a bucket may have millions of rows.
    num_rows = max(1, len(order) * BLOCK_BYTES // max(1, size))
    for first in range(0, len(order), num_rows):
        yield block_of(_rows(whole, order[first : first + num_rows]), 0)


def _row_ends(text: bytes | bytearray) -> NDArray[np.uint32]:
    """Find where each row ends."""
    data = np.frombuffer(text, np.uint8)
    ends = np.empty(text.count(b"\n"), np.uint32)
    filled = 0
    for start in range(0, len(data), BLOCK_BYTES):
        piece = data[start : start + BLOCK_BYTES]
        line_ends = np.flatnonzero(piece == _LINE_END)
        ends[filled : filled + len(line_ends)] = line_ends + (start + 1)
        filled += len(line_ends)
    return ends


def _blocks(bucket: Path) -> Iterator[RowBlock]:
    """Read a bucket piece by piece."""
    text = bytearray()
    with bucket.open("rb") as file:
        while piece := file.read(BLOCK_BYTES):
            text += piece
            end = text.rfind(b"\n", len(text) - len(piece)) + 1
            if end:
                whole, text = text, text[end:]
                yield RowBlock(memoryview(whole)[:end], _row_ends(whole), 0)
