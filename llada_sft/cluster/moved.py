"""A run directory that was moved or copied: its paths, and the jobs that are not its own.

config.yaml holds the absolute path of the directory that the run was launched in, in `data.hook`.
Where it names another directory, this one was moved; or copied, if the other one is still a run.
A copy is a run of its own, and the jobs in its journal belong to the original. Paths into the old
directory are replaced when the run is opened; nothing in that directory is read or written.
"""

import re
import secrets
import shutil
from pathlib import Path

import yaml

from llada_sft.cluster import history, journal, run_files
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.journal import Entry
from llada_sft.config import Config, yaml12
from llada_sft.config.places.paths import map_paths
from llada_sft.config.reader import MAX_BYTES
from llada_sft.config.values import is_url
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir, path_problem

# As `run.name` in the schema.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,79}")


def old_place(run: RunDir) -> Path | None:
    """Return the directory that the run was moved or copied from; None if it is where it was.

    Reads no more of config.yaml than it needs: it may be of another version, or damaged.
    """
    try:
        root = yaml12.compose(run_files.read_start(run.config, MAX_BYTES).decode())
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    hook = yaml12.text_at(root, "data", "hook")
    if hook is None:
        return None
    home = Path(hook).parent.parent
    if home == run.path or not home.is_absolute() or RunDir(home).hook != Path(hook):
        return None
    return None if _same(home, run.path) else home


def is_copy(run: RunDir) -> bool:
    """Return whether this is a copy: the directory that it was made from is still a run."""
    home = old_place(run)
    return home is not None and RunDir(home).config.exists()


def rebase(config: Config, run: RunDir) -> Config:
    """Return the config with its run's present place instead of the old one."""
    home = old_place(run)
    if home is None:
        return config

    def at_new_place(path: str) -> str:
        if is_url(path) or not Path(path).is_relative_to(home):
            return path
        return str(run.path / Path(path).relative_to(home))

    name = run.path.name if _NAME.fullmatch(run.path.name) else config.run.name
    where = {"root": str(run.path.parent), "name": name}
    config = map_paths(config, at_new_place)
    return config.model_copy(update={"run": config.run.model_copy(update=where)})


def check_place(run: RunDir) -> None:
    """Check the path of a run directory, and the links inside it.

    Raises:
        LaunchError: SLURM could not write to such a path; or a link is broken, or points into the
            directory of the original.
    """
    home = old_place(run)
    lines = []
    if problem := path_problem(run.path):
        lines.append(f"{run.path}: {problem}; rename it")
    checkpoints = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    for path in sorted([*run.path.iterdir(), *checkpoints]):
        if not path.is_symlink():
            continue
        target = path.resolve()
        if not target.exists():
            lines.append(f"{path}: a link to {path.readlink()}, which does not exist; restore it")
        elif home is not None and _is_shared(run, path, home, target):
            lines.append(f"{path}: a link to {target}, which is of the run {home}; make it a copy")
    if lines:
        raise LaunchError("\n".join(lines))


def note_move(run: RunDir) -> list[str]:
    """Record in the journal that the run was moved or copied, before config.yaml is rewritten.

    Returns:
        What to print.
    """
    home = old_place(run)
    if home is None:
        return []
    how = "copied" if is_copy(run) else "moved"
    detail = f"the run was {how} from {home} to {run.path}"
    _break_hard_links(run)
    attempt = history.read(run.journal).open
    if attempt is not None and how == "copied":
        ended: Entry = {"event": "ended", "attempt": attempt.number, "exit_code": 1}
        journal.append(run.journal, {**ended, "cause": Cause.LOST, "detail": detail})
    _keep_wandb_id(run, home, how)
    journal.append(run.journal, {"event": "changed", "moved_from": str(home), "detail": detail})
    return [f"{how:<16} from {home}: nothing there is used"]


def _break_hard_links(run: RunDir) -> None:
    """Copy the files that the run appends to, where `cp -al` made the original share them."""
    paths = [run.journal, run.command, *run.logs.rglob("*"), *run.quarantine.glob("*")]
    for path in paths:
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
            copy = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            shutil.copy2(path, copy)
            copy.replace(path)


def _keep_wandb_id(run: RunDir, home: Path, how: str) -> None:
    """Keep the W&B id of a moved run, and give a copy a new one."""
    stored = run.wandb_id
    if how == "copied":
        if stored.exists() or (run.logs / "wandb").exists():
            stored.write_text(f"{run.path.name}-{secrets.token_hex(4)}\n", encoding="utf-8")
    elif not stored.exists() and (run.logs / "wandb").exists():
        # Before ids were stored, the name of the run was the id.
        stored.write_text(f"{home.name}\n", encoding="utf-8")


def _is_shared(run: RunDir, path: Path, home: Path, target: Path) -> bool:
    """Return whether a link points into the old directory, or to what the original links to."""
    at_home = home / path.relative_to(run.path)
    return target.is_relative_to(home.resolve()) or _same(at_home, target)


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False
