"""Which files `llada-sft shard` is to read, and the reader of each kind."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llada_sft.data.shards import list_files
from llada_sft.data.storage.files import SUFFIXES, is_remote, local_path
from llada_sft.errors import DataError
from llada_sft.sharding.blocks import RowBlock
from llada_sft.sharding.findings import Findings

# Not the name of a shard: training must not read it with the shards of the folder.
BAD_ROWS = "bad_rows.ndjson"
# Of each kind the first suffix is the name of the kind.
_KINDS = (
    (*SUFFIXES, ".ndjson", ".ndjson.gz", ".ndjson.zst"),
    (".json",),
    (".csv",),
    (".tsv",),
    (".parquet",),
)
READABLE = tuple(suffix for kind in _KINDS for suffix in kind)
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
        if not name:
            # `Path` takes it for the working folder; a variable of the shell may be empty.
            raise DataError("IN: is empty; name a file, a folder or a glob")
        if is_remote(name):
            raise DataError(f"{name}: is not on this machine; copy it here first")
        files += _files_of(Path(local_path(name)), out)
    seen: set[Path] = set()
    for file in files:
        if not _suffix(file):
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
        return _without_bad_rows(name, list_files(str(name), READABLE))
    if out.resolve().is_relative_to(name.resolve()):
        raise DataError(f"{out}: is in {name}, which is to be read; name a folder elsewhere")
    return _of_one_kind(name)


def _of_one_kind(folder: Path) -> list[Path]:
    """List a folder; a description next to the data must not be taken for data."""
    files = _without_bad_rows(folder, list_files(str(folder), _spelled_suffixes(folder)))
    kinds = sorted({file_kind(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: has {' and '.join(kinds)} files; name those you mean: {folder}/*{kinds[0]}"
        )
    return files


def _spelled_suffixes(folder: Path) -> tuple[str, ...]:
    """Return the suffixes that can be read as this folder's files spell them: `.JSONL`."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        # Listing it again says why.
        return READABLE
    found = {name[len(name) - len(suffix) :] for name in names if (suffix := _suffix(Path(name)))}
    return tuple(sorted(found)) or READABLE


def _without_bad_rows(name: Path, files: list[Path]) -> list[Path]:
    """Leave out the lists of bad rows that earlier runs wrote next to, or into, what is read.

    Raises:
        DataError: There is nothing else.
    """
    others = [file for file in files if not file.name.endswith(BAD_ROWS)]
    if not others:
        raise DataError(f"{name}: there is only a list of the bad rows of an earlier run")
    return others


def _suffix(file: Path) -> str:
    """Return the suffix of a file that can be read; nothing of another."""
    name = file.name.lower()
    return next((suffix for suffix in READABLE if name.endswith(suffix)), "")


def file_kind(file: Path) -> str:
    """Return the suffix that names the kind of a file."""
    return next(kind[0] for kind in _KINDS if file.name.lower().endswith(kind))


def read_blocks(file: Path, findings: Findings) -> Iterator[RowBlock]:
    """Return the rows of a file, each as one line of JSON.

    Raises:
        DataError: The file cannot be read.
    """
    return _reader(file_kind(file))(file, findings)


def _reader(kind: str) -> Callable[[Path, Findings], Iterator[RowBlock]]:
    # Each imports a library that others do without.
    if kind == ".json":
        from llada_sft.sharding.json_array import read_json

        return read_json
    if kind in (".csv", ".tsv"):
        from llada_sft.sharding.csv_rows import read_csv

        return read_csv
    if kind == ".parquet":
        from llada_sft.sharding.parquet import read_parquet

        return read_parquet
    from llada_sft.sharding.jsonl import read_jsonl

    return read_jsonl


def num_text_bytes(file: Path) -> int:
    """Guess how many bytes the rows of a file have."""
    return file.stat().st_size * _EXPANSION.get(file.suffix.lower(), 1)
