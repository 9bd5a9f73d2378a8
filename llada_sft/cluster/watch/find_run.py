"""From what a person types to a run directory: its path, or its name below run.root."""

from pathlib import Path

from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

# run.root, if the config does not say otherwise.
DEFAULT_ROOT = Path("runs")


def find_run(word: str, root: Path = DEFAULT_ROOT) -> RunDir:
    """Find a run, as `find_path` does, with an absolute path."""
    return RunDir(find_path(word, root).absolute())


def find_path(word: str, root: Path = DEFAULT_ROOT) -> Path:
    """Find a run by its path, or else by its name; whatever state its files are in.

    Args:
        word: The path of a run directory, or its path below `root`; the former wins.
        root: The folder of the runs.

    Raises:
        ConfigError: Neither is a run directory.
    """
    for path in (Path(word), root / word):
        if is_run(path):
            return path
    if Path(word).exists():
        raise ConfigError(f"{word}: not a run directory: it has no config.yaml")
    raise ConfigError(
        f"{word}: no such run: neither a path, nor a name in {root}{_hint(word, root)}"
    )


def is_run(path: Path) -> bool:
    """Return whether a path is a run directory.

    Raises:
        ConfigError: It cannot be read.
    """
    run = RunDir(path)
    try:
        return any(file.exists() or file.is_symlink() for file in (run.config, run.journal))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def list_runs(root: Path) -> list[Path]:
    """Return the run directories in a folder, and in those folders of it that are no runs (sweeps).

    Raises:
        ConfigError: There is no such folder, or it cannot be read.
    """
    runs: list[Path] = []
    for path in _folders(root):
        runs += [path] if is_run(path) else filter(is_run, _folders(path))
    return runs


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: no such folder; set --root to the run.root of your runs"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}") from None


def _hint(word: str, root: Path) -> str:
    """Return names that are near, if any."""
    # A mistake may take the time.
    from difflib import get_close_matches

    try:
        names = [str(path.relative_to(root)) for path in list_runs(root)]
    except ConfigError:
        return ""
    near = get_close_matches(word, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
