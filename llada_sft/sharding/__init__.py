"""ROWS OF ANY FILES -> SHARDS OF ONE SIZE: what `llada-sft shard` does.

inputs.py       which files there are; the reader of each kind
jsonl.py        .jsonl, .jsonl.gz, .jsonl.zst: rows moved as they are
json_array.py   .json; csv_rows.py .csv; parquet.py .parquet: rows are parsed
json_lines.py   what was parsed -> lines of JSON
text.py         what all readers of text need of a file
blocks.py       what readers give: blocks of rows, made ahead by a thread
shuffle.py      all rows in a random order, in little memory
dealing.py      which shard gets the next rows; shard_files.py writes them
folder.py       all of it appears at once, or nothing does
progress.py     a bar on a terminal
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from llada_sft.errors import ConfigError, DataError
from llada_sft.sharding.blocks import BadRows, RowBlock, ahead
from llada_sft.sharding.dealing import Dealer
from llada_sft.sharding.folder import check_new, new_folder
from llada_sft.sharding.inputs import find_inputs, num_text_bytes, read_blocks
from llada_sft.sharding.progress import progress
from llada_sft.sharding.shard_files import Compress, ShardFiles

# Not the name of a shard: it must not be read with the shards of the folder.
BAD_ROWS = "bad_rows.ndjson"


class Made(NamedTuple):
    """What was made.

    Attributes:
        num_rows: Rows in all shards.
        sizes: Bytes of each shard, before it is compressed.
        bad_rows: The rows that were skipped.
    """

    num_rows: int
    sizes: list[int]
    bad_rows: BadRows


def make_shards(
    inputs: Sequence[str],
    out: Path,
    num_shards: int,
    compress: Compress | None = None,
    seed: int | None = None,
) -> Made:
    """Write the rows of files into shards that have about the same number of bytes.

    Args:
        inputs: Files, folders and globs.
        out: The folder of the shards; it appears when all is done.
        num_shards: How many.
        compress: How; None leaves them plain.
        seed: Says the random order of the rows; None leaves them in theirs.

    Raises:
        ConfigError: This number of shards cannot be made.
        DataError: A file cannot be read, or a shard cannot be written.
    """
    if num_shards < 1:
        raise ConfigError(f"--num-shards: must be at least 1, got {num_shards}")
    check_new(out)
    files = find_inputs(inputs, out)
    with new_folder(out) as folder:
        shards = ShardFiles(folder, num_shards, compress)
        bad_rows = BadRows(folder / BAD_ROWS)
        blocks = _all_blocks(files, bad_rows)
        if seed is not None:
            from llada_sft.sharding.shuffle import shuffled

            blocks = shuffled(blocks, folder, seed, sum(map(num_text_bytes, files)))
        with shards:
            dealer = Dealer(shards)
            with closing(ahead(blocks)) as coming:
                for block in coming:
                    dealer.deal(block)
            _check_enough(dealer.num_rows, num_shards, bad_rows)
            shards.finish()
    return Made(dealer.num_rows, dealer.sizes, bad_rows)


def report(made: Made, out: Path) -> str:
    """Return what was made, and what was skipped."""
    lines = [
        f"{out}: {len(made.sizes):,} shards, {made.num_rows:,} rows,"
        f" {min(made.sizes):,} to {max(made.sizes):,} bytes of text each"
    ]
    if count := made.bad_rows.count:
        lines.append(f"{count:,} bad rows were skipped, listed in {out / BAD_ROWS}; the first:")
        lines += map(str, made.bad_rows.first)
    return "\n".join(lines)


def _all_blocks(files: Sequence[Path], bad_rows: BadRows) -> Iterator[RowBlock]:
    sizes = [file.stat().st_size for file in files]
    done = 0
    with progress("reading", sum(sizes)) as show:
        for file, size in zip(files, sizes, strict=True):
            for block in read_blocks(file, bad_rows):
                yield block
                show(done + block.position)
            done += size
            show(done)


def _check_enough(num_rows: int, num_shards: int, bad_rows: BadRows) -> None:
    if num_rows >= num_shards:
        return
    do = f"make at most {num_rows:,}" if num_rows else "there is nothing to write"
    if bad_rows.count:
        do += f"; {bad_rows.count:,} rows are bad, the first: {bad_rows.first[0]}"
    raise DataError(f"--num-shards: {num_rows:,} rows for {num_shards:,} shards: {do}")
