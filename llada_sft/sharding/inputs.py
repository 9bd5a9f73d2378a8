"""Which files `llada-sft shard` is to read, and the reader of each kind."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llada_sft.data.shards import list_files
from llada_sft.data.storage.files import SUFFIXES, is_remote, local_path
from llada_sft.errors import DataError
from llada_sft.sharding.blocks import BadRows, RowBlock

_OTHERS = (".json", ".csv", ".parquet")
READABLE = (*SUFFIXES, *_OTHERS)
# What a stored byte may become.
_EXPANSION = {".gz": 5, ".zst": 5, ".parquet": 5}


def find_inputs(names: Sequence[str], out: Path) -> list[Path]:
    """List the files of all names: each a file, a folder or a glob; in the order of the names.

    Raises:
        DataError: There are none, one is of no kind that can be read or is named twice, or `out`
            is among them.
    """
    files: list[Path] = []
    for name in names:
        if is_remote(name):
            raise DataError(f"{name}: is not on this machine; copy it here first")
        files += _files_of(Path(local_path(name)), out)
    seen: set[Path] = set()
    for file in files:
        if not file.name.endswith(READABLE):
            raise DataError(
                f"{file}: its name ends in none of {', '.join(READABLE)}; do not name it"
            )
        if file.resolve() in seen:
            raise DataError(f"{file}: is named twice; its rows would be there twice")
        seen.add(file.resolve())
    return files


def _files_of(name: Path, out: Path) -> list[Path]:
    if name.is_file():
        # Also one whose name looks like a glob.
        return [name]
    if not name.is_dir():
        return list_files(str(name), READABLE)
    if out.resolve().is_relative_to(name.resolve()):
        raise DataError(f"{out}: is in {name}, which is to be read; name a folder elsewhere")
    return _of_one_kind(name)


def _of_one_kind(folder: Path) -> list[Path]:
    """List a folder; a description next to the data must not be taken for data."""
    files = list_files(str(folder), READABLE)
    kinds = sorted({_kind(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: has {' and '.join(kinds)} files; name those you mean: {folder}/*{kinds[0]}"
        )
    return files


def _kind(file: Path) -> str:
    return next((suffix for suffix in _OTHERS if file.name.endswith(suffix)), ".jsonl")


def read_blocks(file: Path, bad_rows: BadRows) -> Iterator[RowBlock]:
    """Return the rows of a file, each as one line of JSON.

    Raises:
        DataError: The file cannot be read.
    """
    return _reader(_kind(file))(file, bad_rows)


def _reader(kind: str) -> Callable[[Path, BadRows], Iterator[RowBlock]]:
    # Each imports a library that others do without.
    if kind == ".json":
        from llada_sft.sharding.json_array import read_json

        return read_json
    if kind == ".csv":
        from llada_sft.sharding.csv_rows import read_csv

        return read_csv
    if kind == ".parquet":
        from llada_sft.sharding.parquet import read_parquet

        return read_parquet
    from llada_sft.sharding.jsonl import read_jsonl

    return read_jsonl


def num_text_bytes(file: Path) -> int:
    """Guess how many bytes the rows of a file have."""
    return file.stat().st_size * _EXPANSION.get(file.suffix, 1)
