"""Config -> run directory: made whole or not at all, and taken up again by the same config.

    resolved(config)      the config as ranks will read it: absolute paths, the hook's snapshot
    create(...)           a new run directory, or the one that is there if it is this same run

The directory is built beside its place and renamed: an interrupted launch leaves no half run. Code
and hook are those of the first launch for all of a run's life; the sections `slurm` and `log` may
change from launch to launch.
"""

import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llada_sft.cluster import door
from llada_sft.cluster.snapshot import redact, take_snapshot
from llada_sft.config import Config, dump_config, load_config, resolve_paths
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

# A run stays the same run when only these change.
CHANGEABLE_SECTIONS = frozenset({"slurm", "log"})
# SLURM replaces % in the names of log files, and the others do not survive its own unquoting.
_UNSAFE_IN_PATH = re.compile(r"[%'\"\\\n\r]")


def resolved(config: Config, base: Path) -> Config:
    """Give the config as it is written to the run directory, which need not exist yet.

    Raises:
        ConfigError: SLURM could not write to such a path.
    """
    config = resolve_paths(config, base)
    run = run_dir_of(config)
    if _UNSAFE_IN_PATH.search(str(run.path)):
        raise ConfigError(f"run.root: must not contain %, quotes or backslashes, got {run.path}")
    setup = None if config.slurm.setup is None else str(run.setup)
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"hook": str(run.hook)}),
            "slurm": config.slurm.model_copy(update={"setup": setup}),
        }
    )


def run_dir_of(config: Config) -> RunDir:
    """Name the run directory of a config with absolute paths."""
    return RunDir(Path(config.run.root) / config.run.name)


def create(config: Config, base: Path, command: Sequence[str]) -> tuple[RunDir, bool]:
    """Make the run directory, or take up the one that is there.

    Args:
        config: As it was read; relative paths start at `base`.
        command: How the run was launched, kept in `command.txt`.

    Returns:
        The run directory, and whether it was there already.

    Raises:
        ConfigError: the directory belongs to something else.
        LaunchError: it was launched by a version that this one cannot start.
    """
    sources, final = resolve_paths(config, base), resolved(config, base)
    run = run_dir_of(final)
    found = run.config.exists()
    if found:
        door.require(run)
        _check_same_run(run, final, Path(sources.data.hook))
        if sources.slurm.setup is not None:
            shutil.copyfile(sources.slurm.setup, run.setup)
        replace_config(run, final)
    else:
        _build(run, sources, final, base)
    with run.command.open("a", encoding="utf-8") as commands:
        commands.write(redact(f"cd {shlex.quote(str(base))} && {shlex.join(command)}\n"))
    return run, found


def replace_config(run: RunDir, config: Config) -> None:
    """Write `config.yaml` in one move: a rank that starts now reads the old or the new one."""
    beside = run.config.with_suffix(".yaml.partial")
    beside.write_text(dump_config(config), encoding="utf-8")
    beside.replace(run.config)


def _build(run: RunDir, sources: Config, final: Config, base: Path) -> None:
    run.path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.", dir=run.path.parent))
    try:
        building = RunDir(partial)
        for folder in (building.code, building.slurm, building.logs, building.failures):
            folder.mkdir()
        take_snapshot(building, sources.data.hook, sources.slurm.setup, base)
        building.config.write_text(dump_config(final), encoding="utf-8")
        partial.chmod(0o755)
        _move_into_place(partial, run)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, run: RunDir) -> None:
    try:
        partial.rename(run.path)
    except OSError:
        raise ConfigError(
            f"{run.path}: exists and is not a run directory: choose another run.name"
        ) from None


def _check_same_run(run: RunDir, config: Config, hook: Path) -> None:
    differing = differing_keys(load_config(run.config), config)
    if run.hook.exists() and run.hook.read_bytes() != hook.read_bytes():
        differing.append("data.hook (its text)")
    if differing:
        raise ConfigError(
            f"{run.path}: is a run with another config: {', '.join(differing)} differ:"
            " choose another run.name, or launch with the values it has"
        )


def differing_keys(one: Config, other: Config) -> list[str]:
    """Name the keys that make two configs two runs."""
    a, b = one.model_dump(), other.model_dump()
    return [
        f"{section}.{key}"
        for section in a
        if section not in CHANGEABLE_SECTIONS
        for key in a[section]
        if a[section][key] != b[section][key]
    ]
