"""Config -> run directory: a new one, or the existing one of the same run.

The directory is built next to its place and then renamed, so that an interrupted launch does not
leave an incomplete run. Code and hook are those of the first launch, until `llada-sft resume RUN
--update-code`; the sections `slurm` and `log` may change from launch to launch. If a run never
started because sbatch refused it, the next launch builds it again from the present files.
"""

import json
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llada_sft.cluster import door, history, journal, moved
from llada_sft.cluster.launch.origin import origin_of
from llada_sft.cluster.launch.request import resolved, run_dir_of
from llada_sft.cluster.launch.snapshot import redact, take_snapshot
from llada_sft.cluster.resume import update_code
from llada_sft.cluster.resume.changing import is_trained, journal_values, replace_config, take_setup
from llada_sft.cluster.resume.code_diff import compare
from llada_sft.config import Config, dump_config, load_run_config, resolve_paths
from llada_sft.config.changes import batch_lines, change_lines, find_changes, refuse_changes
from llada_sft.entry import print_or_drop
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

# A run stays the same run if only these sections and keys change.
CHANGEABLE_SECTIONS = frozenset({"slurm", "log"})
CHANGEABLE_KEYS = frozenset({"run.owner_timeout_s"})
# Makes the launcher the owner of a run; the path is the folder in which the run is being built.
Claim = Callable[[RunDir, Path | None], None]


def create(
    config: Config,
    base: Path,
    command: Sequence[str],
    claim: Claim = lambda run, building: None,
) -> tuple[RunDir, bool]:
    """Make the run directory, or reuse the existing one.

    Args:
        config: The config as it was read.
        base: The folder at which relative paths in the config start.
        command: The command that launched the run, kept in `command.txt`.
        claim: Called before anything is written that others may read.

    Returns:
        The run directory, and whether the run has started before.

    Raises:
        ConfigError: The directory belongs to something else.
        LaunchError: The run was launched by a version that this one cannot start, or somebody else
            owns it.
    """
    sources, final = resolve_paths(config, base), resolved(config, base)
    run = run_dir_of(final)
    try:
        is_started = _create(run, sources, final, base, claim)
        _append_command(run, base, command)
        return run, is_started
    except OSError as error:
        # The error of a copy has two names: the second is the file that could not be written.
        where = Path(error.filename2 or error.filename or run.path)
        # A directory that is being built has a temporary name, which means nothing to the user.
        where = run.path if where.is_relative_to(run.path.parent) else where
        reason = error.strerror or error
        raise ConfigError(f"{where}: cannot be written: {reason}; see run.root") from None


def _create(run: RunDir, sources: Config, final: Config, base: Path, claim: Claim) -> bool:
    """Make the run directory, or reuse it; return whether the run has started before."""
    # Another launcher may have renamed its own directory while this one was built.
    if run.config.exists() or not _build(run, sources, final, base, claim):
        return _reuse(run, sources, final, base, claim)
    claim(run, None)
    return False


def _append_command(run: RunDir, base: Path, command: Sequence[str]) -> None:
    # A folder or an argument may not be UTF-8.
    with run.command.open("a", encoding="utf-8", errors="surrogateescape") as commands:
        commands.write(redact(f"cd {shlex.quote(str(base))} && {shlex.join(command)}\n"))


def _build(run: RunDir, sources: Config, final: Config, base: Path, claim: Claim) -> bool:
    """Build a run directory next to its place; return False if another launcher was first."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkdtemp: only the user could read its folder, whatever the umask is.
    partial = run.path.with_name(f".{run.path.name}.{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        building = RunDir(partial)
        for folder in (building.code, building.slurm, building.logs, building.failures):
            folder.mkdir()
        take_snapshot(building, sources.data.hook, sources.slurm.setup, base)
        building.config.write_text(dump_config(final), encoding="utf-8")
        claim(run, partial)
        return _move_into_place(partial, run)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, run: RunDir) -> bool:
    try:
        partial.rename(run.path)
    except OSError:
        if run.config.exists():
            return False
        raise ConfigError(
            f"{run.path}: exists and is not a run directory: choose another run.name"
        ) from None
    return True


def _reuse(run: RunDir, sources: Config, final: Config, base: Path, claim: Claim) -> bool:
    """Reuse an existing run directory; if the run never started, build it again.

    Returns:
        Whether the run has started before.
    """
    if run.update.exists():
        claim(run, None)
        update_code.finish_update(run)
    moved.check_place(run)
    if not has_started(run):
        claim(run, None)
        # Another owner may have started it in between.
        if not has_started(run):
            _rebuild(run, sources, final, base)
            return False
    door.require(run)
    before = moved.rebase(load_run_config(run.config), run)
    _check_same_run(run, before, final, Path(sources.data.hook))
    claim(run, None)
    changes = find_changes(before, final)
    changed = [*change_lines(changes, trained=True), *batch_lines(before, final)]
    for line in [*moved.note_move(run), *changed]:
        # Not to stdout, where a script reads what --prepare prints.
        print_or_drop(redact(line), sys.stderr)
    take_setup(run, sources.slurm.setup)
    replace_config(run, final)
    if changes:
        journal.append(run.journal, {"event": "changed", "keys": journal_values(changes)})
    return True


def has_started(run: RunDir) -> bool:
    """Return whether an attempt of the run has started; nobody else may use the run."""
    return bool(history.read(run.journal).attempts) or is_trained(run)


def _rebuild(run: RunDir, sources: Config, final: Config, base: Path) -> None:
    """Build a run that never started once more, from the present files and config."""
    building = update_code.build(run, sources.data.hook, sources.slurm.setup, base)
    text = dump_config(final)
    if not compare(run, building) and text == run.config.read_text(encoding="utf-8"):
        update_code.discard(building)
        return
    detail = "it had never started: built again from the present files"
    for line in [*moved.note_move(run), f"{run.path}: {detail}"]:
        print_or_drop(line, sys.stderr)
    update_code.commit(run, building, text, {"event": "changed", "detail": detail}, keep=False)


def _with_hook(run: RunDir, hook: Path) -> list[str]:
    """Return the arguments of a resume that takes a hook: by default it takes the launch's hook."""
    same = origin_of(run).hook == str(hook)
    return ["--update-code", *([] if same else [f"data.hook={hook}"])]


def _check_same_run(run: RunDir, before: Config, config: Config, hook: Path) -> None:
    changes = [
        change
        for change in find_changes(before, config)
        if change.key.partition(".")[0] not in CHANGEABLE_SECTIONS
        and change.key not in CHANGEABLE_KEYS
    ]
    differing = [change.key for change in changes]
    has_hook = run.hook.exists()
    if other_hook := has_hook and run.hook.read_bytes() != hook.read_bytes():
        differing.append("data.hook (its text)")
    if not differing:
        return
    command = shlex.join(
        ["llada-sft", "resume", str(run.path)]
        + (_with_hook(run, hook) if other_hook else [])
        + [f"{change.key}={json.dumps(change.new)}" for change in changes]
    )
    where = f"{run.path}: is a run with another config: {', '.join(differing)} differ:"
    do = "choose another run.name, or launch with the values it has"
    try:
        refuse_changes(changes, is_trained(run))
    except ConfigError:
        raise ConfigError(f"{where} {do}") from None
    raise ConfigError(f"{where} {do}, or change the run:  {redact(command)}")
