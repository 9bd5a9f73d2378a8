"""How many rows a set of shards has: counted, or estimated where counting would take minutes."""

from collections.abc import Sequence
from pathlib import Path

from llada_sft.config.arithmetic import RowCount
from llada_sft.data.sources import Source
from llada_sft.data.storage.files import Shard, is_compressed, open_text

COUNT_UP_TO_BYTES = 256 * 2**20
SAMPLE_BYTES = 8 * 2**20
# What a compressed byte may become.
_EXPANSION = 5
# No more than this of a longer line is in memory.
_PIECE_BYTES = 1 << 20


def count_rows(files: Sequence[Shard]) -> tuple[list[int], bool] | None:
    """Count the lines that are not blank in each file.

    Returns:
        The rows of each file, and whether they are an estimate: past `COUNT_UP_TO_BYTES` in all,
        each file's size over the mean line length of a sample from several files. None if a file
        is remote, or compressed and past that: neither is fetched or unpacked only to be counted.

    Raises:
        DataError: A file cannot be read.
    """
    local = [file for file in files if isinstance(file, Path)]
    if len(local) < len(files):
        return None
    sizes = [_text_bytes(file) for file in local]
    if sum(sizes) <= COUNT_UP_TO_BYTES:
        return [_rows_in(file, None)[0] for file in local], False
    if any(map(is_compressed, local)):
        return None
    sample = local[:: max(1, len(local) // 8)]
    pairs = [_rows_in(file, SAMPLE_BYTES // len(sample)) for file in sample]
    rows, num_bytes = (sum(column) for column in zip(*pairs, strict=True))
    return [round(size * rows / max(1, num_bytes)) for size in sizes], True


def has_rows(files: Sequence[Shard]) -> bool:
    """Return whether any of the files has a row; remote files are assumed to have one.

    Raises:
        DataError: A file cannot be read.
    """
    return any(not isinstance(file, Path) or _rows_in(file, max_bytes=0)[0] for file in files)


def count_sources(sources: Sequence[Source], world_size: int) -> RowCount | None:
    """Count the rows of sources, and those of the rank that reads most of them.

    Returns:
        None where `count_rows` does.

    Raises:
        ConfigError: A source has fewer files than there are ranks.
        DataError: A file cannot be read.
    """
    ranks = [[source.of_rank(rank, world_size) for source in sources] for rank in range(world_size)]
    counted = count_rows([named.shard for source in sources for named in source.shards])
    if counted is None:
        return None
    counts, estimated = counted
    names = [named.name for source in sources for named in source.shards]
    rows = dict(zip(names, counts, strict=True))

    def in_all(source: Source, times: int) -> int:
        return times * sum(rows[named.name] for named in source.shards)

    # The epochs of one dataset follow each other; those of several are all that there is.
    busiest = max(
        sum(in_all(source, source.epochs if source.name else 1) for source in of_rank)
        for of_rank in ranks
    )
    by_source = {
        source.name: (in_all(source, 1), source.epochs) for source in sources if source.name
    }
    return RowCount(sum(counts), busiest, estimated, by_source)


def _text_bytes(file: Path) -> int:
    size = file.stat().st_size
    return size * _EXPANSION if is_compressed(file) else size


def _rows_in(file: Path, max_bytes: int | None) -> tuple[int, int]:
    """Count the rows that start in the first `max_bytes` of the text, and the bytes they take.

    One at least, if there is one.
    """
    rows = num_bytes = 0
    is_row = False
    with open_text(file) as text:
        while piece := text.readline(_PIECE_BYTES):
            is_row = is_row or not piece.isspace()
            num_bytes += len(piece)
            if piece.endswith(b"\n"):
                rows, is_row = rows + is_row, False
                if max_bytes is not None and rows and num_bytes >= max_bytes:
                    break
    return rows + is_row, num_bytes
