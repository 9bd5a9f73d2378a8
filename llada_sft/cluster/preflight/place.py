"""Checks, before anything is written, that a run directory can be made in `run.root`."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from llada_sft.run_dir import RunDir

_ADVICE = "set run.root to a folder that can be written to"
# How many bytes of PATH_MAX (4096) paths below the run directory may need.
_LONGEST_PATH_BELOW = 256
_LONGEST_PATH = 4096 - _LONGEST_PATH_BELOW


def place_problems(run: RunDir) -> Iterator[str]:
    """Yield the problems with the path of a run directory, which may already exist."""
    if len(os.fsencode(run.path)) > _LONGEST_PATH:
        yield f"run.root: {_short(run.path)}: longer than {_LONGEST_PATH} bytes; {_ADVICE}"
        return
    for folder in (run.path, *run.path.parents):
        try:
            mode = folder.stat().st_mode
        except FileNotFoundError:
            if folder.is_symlink():
                yield f"run.root: {folder}: a link to something that does not exist; {_ADVICE}"
                return
            continue
        except OSError as error:
            # A parent folder shows the cause: a file, or a limit for the length of names.
            if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
                continue
            yield f"run.root: {_short(folder)}: {error.strerror}; {_ADVICE}"
            return
        yield from _problems_of(run, folder, is_folder=stat.S_ISDIR(mode))
        return


def _problems_of(run: RunDir, folder: Path, is_folder: bool) -> Iterator[str]:
    """Yield the problems with the lowest folder of the path that exists."""
    if folder == run.path and not (is_folder and _is_run_or_empty(run)):
        yield f"{run.path}: exists and is not a run directory: choose another run.name"
    elif not is_folder:
        yield f"run.root: {folder}: not a folder; {_ADVICE}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        reason = "Read-only file system" if read_only else "Permission denied"
        yield f"run.root: {folder}: cannot be written to: {reason}; {_ADVICE}"
    else:
        longest = os.pathconf(folder, "PC_NAME_MAX")
        for part in run.path.relative_to(folder).parts:
            if len(os.fsencode(part)) > longest:
                yield f"run.root: {_short(Path(part))}: longer than {longest} bytes; {_ADVICE}"


def _is_run_or_empty(run: RunDir) -> bool:
    if run.config.exists():
        return True
    try:
        return not any(run.path.iterdir())
    except OSError:
        return False


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 100 else f"{text[:100]}..."
