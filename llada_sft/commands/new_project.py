"""`llada-sft init`: the files of a new project, as the package brings them.

A checkout has them at its top; a wheel has copies of them in `llada_sft/starter_files/`.
"""

import filecmp
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import llada_sft
from llada_sft.errors import ConfigError

_PACKAGE = Path(llada_sft.__file__).parent
# Folders and files; pyproject.toml has the same names.
STARTER = ("config", "slurm", "utils", "launch.py")
SHOWN = 5


def init(folder: Path) -> list[str]:
    """Write the files of a new project into a folder, and return what to do with them.

    Files that are there already with the same content stay.

    Raises:
        ConfigError: A file has another content, or cannot be written.
    """
    source = starter_files()
    names = list(_names(source))
    try:
        _refuse_others(folder, source, names)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return [
        f"{folder}: {len(names)} files: {', '.join(STARTER)}",
        "next, name your model, data and run in a copy of a config, look at the data, and train:",
        f"  cd {shlex.quote(str(folder))}",
        "  cp config/local.yaml config/mine.yaml",
        "  llada-sft check config/mine.yaml",
        "  llada-sft launch --config config/mine.yaml --local",
    ]


def starter_files() -> Path:
    """Return the folder with the files of a new project."""
    packaged = _PACKAGE / "starter_files"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def _names(source: Path) -> Iterator[Path]:
    for name in STARTER:
        found = source / name
        files = sorted(found.rglob("*")) if found.is_dir() else [found]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(source)


def _refuse_others(folder: Path, source: Path, names: list[Path]) -> None:
    others = [
        str(name)
        for name in names
        if (folder / name).exists() and not filecmp.cmp(source / name, folder / name, shallow=False)
    ]
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise ConfigError(
            f"{folder}: has other files of these names: {', '.join(others[:SHOWN])}{more};"
            " nothing was written: choose another folder, or move them away"
        )
