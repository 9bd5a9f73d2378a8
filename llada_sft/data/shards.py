"""Who reads which file: the shards of a folder in a fixed order, dealt out to the ranks."""

import glob
from collections.abc import Sequence
from pathlib import Path

from llada_sft.errors import ConfigError, DataError


def list_shards(path: str) -> list[Path]:
    """List the shards of a folder (its `*.jsonl`) or of a glob, sorted by name.

    Raises:
        DataError: there are none.
    """
    if Path(path).is_dir():
        found = sorted(one for one in Path(path).glob("*.jsonl") if one.is_file())
        if not found:
            raise DataError(f"{path}: no .jsonl files in this folder")
        return found
    matches = glob.glob(path, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    found = sorted(one for one in map(Path, matches) if one.is_file())
    if not found:
        what = "no file matches" if glob.has_magic(path) else "no such folder or file"
        raise DataError(f"{path}: {what}")
    return found


def assign_files(files: Sequence[Path], rank: int, world_size: int) -> list[Path]:
    """Give the files of one rank: every `world_size`-th, beginning with `files[rank]`.

    Raises:
        ConfigError: there are fewer files than ranks, so some rank would have nothing to read.
    """
    if len(files) < world_size:
        folder = f" in {files[0].parent}" if files else ""
        raise ConfigError(
            f"{len(files)} shards for {world_size} ranks{folder}: use at most {len(files)} ranks,"
            f" or split the files into at least {world_size}"
        )
    return list(files[rank::world_size])


def shard_root(path: str) -> Path:
    """Return the folder that shards are named relative to: a glob's part before its first wildcard.

    Names, not absolute paths, key the noise and the order: a dataset may be moved.
    """
    plain = Path(path)
    while glob.has_magic(str(plain)):
        plain = plain.parent
    return plain if plain.is_dir() else plain.parent
