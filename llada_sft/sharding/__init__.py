"""ROWS OF ANY FILES -> SHARDS OF ONE SIZE: what `llada-sft shard` does.

inputs.py       which files there are; the reader of each kind
jsonl.py        .jsonl, .jsonl.gz, .jsonl.zst: rows moved as they are
json_array.py   .json; csv_rows.py .csv; parquet.py .parquet: rows are parsed
json_scan.py    where the values of a long text of JSON end
json_lines.py   text of JSON -> values -> lines of JSON, the same of every kind of file
blocks.py       what readers give: blocks of rows, made ahead by a thread
findings.py     what is said of the files: bad rows, counts, notes
shuffle.py      all rows in a random order, in little memory
shard_files.py  which shard gets the next rows; writes them
folder.py       all of it appears at once, or nothing does
progress.py     a bar on a terminal
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from llada_sft.errors import ConfigError, DataError
from llada_sft.sharding.blocks import RowBlock, ahead
from llada_sft.sharding.findings import Findings, TooManyBadRowsError
from llada_sft.sharding.folder import check_new, new_folder
from llada_sft.sharding.inputs import BAD_ROWS, file_kind, find_inputs, num_text_bytes, read_blocks
from llada_sft.sharding.progress import progress
from llada_sft.sharding.shard_files import Compress, Dealer, ShardFiles


class Made(NamedTuple):
    """What was made.

    Attributes:
        num_rows: Rows in all shards.
        sizes: Bytes of each shard, before it is compressed.
        findings: What is to be said of the files: the rows that were skipped, and more.
    """

    num_rows: int
    sizes: list[int]
    findings: Findings


def make_shards(
    inputs: Sequence[str],
    out: Path,
    num_shards: int,
    compress: Compress | None = None,
    seed: int | None = None,
    max_bad_fraction: float = 0.01,
) -> Made:
    """Write the rows of files into shards that have about the same number of bytes.

    Args:
        inputs: Files, folders and globs.
        out: The folder of the shards; it appears when all is done.
        num_shards: How many.
        compress: How; None leaves them plain.
        seed: Says the random order of the rows; None leaves them in theirs.
        max_bad_fraction: How many of all rows may be bad, from 0 to 1.

    Raises:
        ConfigError: This number of shards cannot be made.
        TooManyBadRowsError: More rows are bad, or all of a file; nothing is made.
        DataError: A file cannot be read, or a shard cannot be written.
    """
    if num_shards < 1:
        raise ConfigError(f"--num-shards: must be at least 1, got {num_shards}")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed: must be at least 0, got {seed}")
    if not 0 <= max_bad_fraction <= 1:
        raise ConfigError(f"--max-bad-fraction: must be from 0 to 1, got {max_bad_fraction}")
    check_new(out)
    files = find_inputs(inputs, out)
    with new_folder(out) as folder:
        shards = ShardFiles(folder, num_shards, compress)
        findings = Findings(folder / BAD_ROWS)
        blocks = _all_blocks(files, findings)
        if seed is not None:
            from llada_sft.sharding.shuffle import shuffled

            blocks = shuffled(blocks, folder, seed, sum(map(num_text_bytes, files)))
        with shards:
            dealer = Dealer(shards)
            with closing(ahead(blocks)) as coming:
                for block in coming:
                    dealer.deal(block)
            _check_not_too_many(findings, max_bad_fraction, out)
            _check_enough(dealer.num_rows, num_shards, findings)
            shards.finish()
    _list_next_to(out).unlink(missing_ok=True)
    return Made(dealer.num_rows, dealer.sizes, findings)


def report(made: Made, out: Path) -> str:
    """Return what was made, and what was skipped."""
    lines = [
        f"{out}: {len(made.sizes):,} shards, {made.num_rows:,} rows,"
        f" {min(made.sizes):,} to {max(made.sizes):,} bytes of text each"
    ]
    findings = made.findings
    if formats := _formats(findings):
        lines.append(f"they come from files of different formats: {formats}")
    lines += findings.notes
    if findings.num_bad:
        where = out / BAD_ROWS
        lines.append(f"{findings.num_bad:,} bad rows were skipped, listed in {where}; the first:")
        lines += map(str, findings.first)
    return "\n".join(lines)


def _formats(findings: Findings) -> str:
    """Count the rows of each format; nothing if there is one format only."""
    kinds = list(dict.fromkeys(file_kind(count.file) for count in findings.files))
    counts = []
    for kind in kinds:
        rows = [count.num_rows for count in findings.files if file_kind(count.file) == kind]
        files = "file" if len(rows) == 1 else "files"
        counts.append(f"{sum(rows):,} rows of {len(rows):,} {kind} {files}")
    return ", ".join(counts) if len(counts) > 1 else ""


def _all_blocks(files: Sequence[Path], findings: Findings) -> Iterator[RowBlock]:
    sizes = [file.stat().st_size for file in files]
    done = 0
    with progress("reading", sum(sizes)) as show:
        for file, size in zip(files, sizes, strict=True):
            num_rows = 0
            for block in read_blocks(file, findings):
                num_rows += len(block.ends)
                yield block
                show(done + block.position)
            findings.end_file(file, num_rows)
            done += size
            show(done)


def _check_not_too_many(findings: Findings, max_bad_fraction: float, out: Path) -> None:
    problem = findings.too_many(max_bad_fraction)
    if problem is None:
        return
    findings.keep_list(_list_next_to(out))
    lines = [f"{out}: is not made: {problem}"]
    lines += [f"all bad rows are listed in {_list_next_to(out)}; the first:"]
    raise TooManyBadRowsError("\n".join([*lines, *map(str, findings.first)]))


def _list_next_to(out: Path) -> Path:
    """Return where bad rows are listed if there is no folder for the list."""
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(f"{named.name}.{BAD_ROWS}")


def _check_enough(num_rows: int, num_shards: int, findings: Findings) -> None:
    if num_rows >= num_shards:
        return
    do = f"make at most {num_rows:,}" if num_rows else "there is nothing to write"
    if findings.num_bad:
        do += f"; {findings.num_bad:,} rows are bad, the first: {findings.first[0]}"
    raise DataError(f"--num-shards: {num_rows:,} rows for {num_shards:,} shards: {do}")
