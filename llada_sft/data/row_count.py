"""How many rows a set of shards has: counted, or estimated where counting would take minutes."""

from collections.abc import Sequence
from pathlib import Path

COUNT_UP_TO_BYTES = 256 * 2**20
SAMPLE_BYTES = 8 * 2**20


def count_rows(files: Sequence[Path]) -> tuple[list[int], bool]:
    """Count the lines that are not blank in each file.

    Returns:
        The rows of each file, and whether they are an estimate: past `COUNT_UP_TO_BYTES` in all,
        each file's size over the mean line length of a sample from several files.
    """
    sizes = [file.stat().st_size for file in files]
    if sum(sizes) <= COUNT_UP_TO_BYTES:
        return [_rows_in(file, None)[0] for file in files], False
    sample = files[:: max(1, len(files) // 8)]
    pairs = [_rows_in(file, SAMPLE_BYTES // len(sample)) for file in sample]
    rows, num_bytes = (sum(column) for column in zip(*pairs, strict=True))
    return [round(size * rows / num_bytes) for size in sizes], True


def _rows_in(file: Path, max_bytes: int | None) -> tuple[int, int]:
    """Count the rows that begin in the first `max_bytes`, and the bytes that they take."""
    rows = num_bytes = 0
    with file.open("rb") as lines:
        for line in lines:
            rows += not line.isspace()
            num_bytes += len(line)
            if max_bytes is not None and num_bytes >= max_bytes:
                break
    return rows, num_bytes
