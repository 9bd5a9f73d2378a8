"""Which rank reads which file: the shards of a folder in a fixed order, dealt out to the ranks."""

import glob
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from llada_sft.data.storage.files import SUFFIXES, Shard, is_remote, list_remote, local_path
from llada_sft.errors import ConfigError, DataError


def list_shards(path: str) -> list[Shard]:
    """List the shards of a folder (its `*.jsonl`, `*.jsonl.gz`, `*.jsonl.zst`), a glob or a URL.

    As in a shell, a glob does not match names that start with a dot, and neither does a folder.

    Returns:
        The shards, sorted by name.

    Raises:
        DataError: There are none, or one is not a file.
    """
    if is_remote(path):
        return list(list_remote(path, str(shard_root(path))))
    return list(list_files(path))


def list_files(path: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """List the files of a local folder that have one of the suffixes, or of a glob, as above.

    Raises:
        DataError: There are none, or one is not a file.
    """
    path = local_path(path)
    try:
        in_folder = Path(path).is_dir()
        shards, not_files = _in_folder(path, suffixes) if in_folder else _matching(path, suffixes)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    problems = [f"{shard}: {_kind(shard)}" for shard in not_files]
    problems += [f"{name}: is not a UTF-8 name; rename it" for name in _undecodable(shards)]
    if problems:
        raise DataError("\n".join(problems))
    return shards


def _in_folder(path: str, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return what has the name of a shard, and which of it is not a file."""
    # Unlike Path.iterdir, it knows the files from the rest without asking for each.
    with os.scandir(path) as entries:
        shards = [
            entry for entry in entries if entry.name.endswith(suffixes) and entry.name[0] != "."
        ]
    if not shards:
        raise DataError(f"{path}: no {', '.join(suffixes)} files in this folder")
    shards.sort(key=lambda entry: entry.name)
    folder = Path(path)
    not_files = [folder / entry.name for entry in shards if not entry.is_file()]
    return [folder / entry.name for entry in shards], not_files


def _matching(path: str, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    start, pattern = _literal_start(path)
    _check_folders(start, pattern)
    names = glob.glob(pattern, root_dir=start, recursive=True) if pattern else [""]  # noqa: PTH207
    # `**` also matches the folders on its way, and several of it a file more than once.
    shards = sorted(
        {
            shard
            for shard in (start / name for name in names)
            if shard.name.endswith(suffixes) or shard.is_file()
        }
    )
    if not shards:
        what = "no file matches" if glob.has_magic(pattern) else "no such folder or file"
        raise DataError(f"{path}: {what}")
    return shards, [shard for shard in shards if not shard.is_file()]


def _literal_start(path: str) -> tuple[Path, str]:
    """Split a path into the part that is there as it is written, and the glob that follows.

    What is there is meant, also if its name has characters of a glob: `data[1]/*.jsonl`.
    """
    parts = [part for part in path.split("/") if part]
    start = Path("/" if path.startswith("/") else ".")
    for number, part in enumerate(parts):
        if not os.path.lexists(start / part):
            return start, "/".join(parts[number:])
        start /= part
    return start, ""


def _check_folders(start: Path, pattern: str) -> None:
    """Look into each folder that a glob looks into: it would pass over one that it may not read."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)  # noqa: PTH120 (a Path would drop the end of `a/**/`)
        names = glob.glob(pattern, root_dir=start, recursive=True) if pattern else [""]  # noqa: PTH207
        for folder in (start / name for name in names):
            if folder.is_dir():
                os.scandir(folder).close()


def _undecodable(shards: Sequence[Path]) -> list[str]:
    """Find the names that are not UTF-8: neither a checkpoint nor a log could hold them."""
    shown = {
        str(shard): os.fsencode(shard).decode(errors="backslashreplace")
        for shard in shards
        if not str(shard).isascii()
    }
    return [name for path, name in shown.items() if name != path]


def _kind(shard: Path) -> str:
    if shard.is_dir():
        return "is a folder, not a shard; move it away"
    if shard.is_symlink() and not shard.exists():
        return f"is a link to {shard.readlink()}, which is not there; restore or remove it"
    return "is not a regular file; move it away"


def assign_files(files: Sequence[Shard], rank: int, world_size: int) -> list[Shard]:
    """Return the files of one rank: every `world_size`-th, starting with `files[rank]`.

    Raises:
        ConfigError: There are fewer files than ranks, so some rank would have nothing to read.
    """
    if len(files) < world_size:
        folder = f" in {files[0].parent}" if files else ""
        raise ConfigError(
            f"{len(files)} shards for {world_size} ranks{folder}: use at most {len(files)} ranks,"
            f" or {_more_shards(files, world_size)}"
        )
    return list(files[rank::world_size])


def _more_shards(files: Sequence[Shard], number: int) -> str:
    """Return how to get enough shards."""
    if not files or not isinstance(files[0], Path):
        return f"split the files into at least {number}"
    folder = files[0].parent
    new = folder.with_name(f"{folder.name}_{number}")
    words = ["llada-sft", "shard", str(folder), str(new), "--num-shards", str(number)]
    return f"run  {shlex.join(words)}"


def shard_root(path: str) -> Path | str:
    """Return the folder that shards are named relative to: a glob's part before its first wildcard.

    Names, not absolute paths, key the noise and the order: a dataset may be moved.

    Returns:
        A local folder, or the URL of a remote one.
    """
    if is_remote(path):
        scheme, _, rest = path.partition("://")
        while glob.has_magic(rest) or rest.endswith(SUFFIXES):
            rest = rest.rpartition("/")[0]
        return f"{scheme}://{rest}".rstrip("/")
    path = local_path(path)
    start, pattern = _literal_start(path)
    return start if start.is_dir() or pattern else start.parent
