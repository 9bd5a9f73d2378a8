"""What `llada-sft resume RUN [section.key=value ...] [--update-code]` changes in a run.

`plan` reads, refuses changes that are not allowed, and writes nothing; `apply` writes. Relative
paths in changed values start at the current folder.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_sft import atomic
from llada_sft.cluster import journal, moved
from llada_sft.cluster.batch.options import Options, one_shots, without_one_shots
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.launch.origin import origin_of
from llada_sft.cluster.launch.snapshot import checkout_of_the_package, code_version, redact
from llada_sft.cluster.resume import code_diff, fitting, update_code
from llada_sft.cluster.resume.old_version import carry_over, read_old
from llada_sft.config import (
    Config,
    dump_config,
    load_config,
    load_run_config,
    resolve_paths,
    yaml12,
)
from llada_sft.config.changes import Change, batch_lines, change_lines, find_changes, refuse_changes
from llada_sft.config.problems import under_new_names, under_old_names
from llada_sft.config.reader import read_values
from llada_sft.entry import print_or_drop
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

# A complete or damaged checkpoint; a checkpoint that is being written does not match.
_CHECKPOINT = re.compile(r"step_\d+(\.damaged.*)?")


@dataclass(frozen=True)
class Plan:
    """What a resume will change.

    Attributes:
        config: The config as it will be in config.yaml.
        sources: The same config, with the paths from which the hook and setup.sh are copied.
        changes: The keys whose values change.
        lines: The lines to print before the change.
        once: Options of sbatch for the job that follows, and for no later one.
        update: Whether the run gets the present code.
        text: The content of config.yaml when the plan was made.
    """

    config: Config
    sources: Config
    changes: Sequence[Change]
    lines: Sequence[str]
    once: Options
    update: bool
    text: bytes


def plan(run: RunDir, overrides: Sequence[str], base: Path, update: bool) -> Plan:
    """Return what will change.

    Args:
        run: The run directory.
        overrides: `section.key=value`, as they were typed.
        base: The folder at which relative paths in `overrides` start.
        update: Whether to take the present code, hook and setup.sh.

    Raises:
        ConfigError: Values are mistakes, or may not change within a run; it has one line for each.
        LaunchError: The directory was moved or copied in a way that cannot work.
    """
    moved.check_place(run)
    text = run.config.read_bytes()
    before, after, lines = _read(run, overrides, base, update)
    # A run of an older version may have such options in its config.yaml: they are over.
    once = dict(one_shots(after).items() - one_shots(before).items())
    after = without_one_shots(after)
    changes = [change for change in find_changes(before, after) if not _is_own(change, run)]
    trained = is_trained(run)
    refused = [change for change in changes if not (update and change.key == "data.hook")]
    refuse_changes(refused, trained)
    if trained:
        fitting.require(run, before, after, changes)
    lines += [redact(line) for line in change_lines(changes, trained)]
    lines += batch_lines(before, after) if trained else []
    # In config.yaml, the hook and setup.sh are the run's own copies.
    own_setup = None if after.slurm.setup is None else str(run.setup)
    final = _with_files(moved.rebase(after, run), str(run.hook), own_setup)
    given = {override.partition("=")[0].strip() for override in overrides}
    given |= {change.key for change in changes}
    hook, setup, note = _files_to_take(run, final, after, given, update)
    return Plan(
        config=final,
        sources=_with_files(final, hook, setup),
        changes=changes,
        lines=[*lines, *note],
        once=once,
        update=update,
        text=text,
    )


def apply(run: RunDir, plan: Plan) -> None:
    """Change the run, print the changes, and record them; nobody else may use the run.

    Raises:
        LaunchError: The run directory cannot be written.
    """
    with _writing(run):
        if run.config.read_bytes() != plan.text:
            raise LaunchError(f"{run.path}: somebody else has changed it meanwhile; try again")
        _say([*moved.note_move(run), *plan.lines])
        entry: Entry = {"event": "changed", "keys": journal_values(plan.changes)}
        if plan.update:
            _update(run, plan, entry)
            return
        take_setup(run, plan.sources.slurm.setup)
        replace_config(run, plan.config)
        if plan.changes:
            journal.append(run.journal, entry)


def replace_config(run: RunDir, config: Config) -> None:
    """Write `config.yaml` in one move: a rank that starts now reads the old or the new one.

    The run's own code may be of an older version, which does not know keys that came later: those
    that the file lacks stay out of it as long as they have their defaults. Values that stay are
    written as they were: the older version may not know another way of writing them, either.
    """
    written_before = read_values(run.config)
    known, before = under_new_names(written_before), _as_it_was(run)
    data = config.model_dump(mode="json")
    for name in list(data):
        section, written = getattr(config, name), known.get(name)
        if name not in known and section == Config.model_fields[name].default:
            del data[name]
        if section is None or not isinstance(written, dict):
            continue
        for key, field in type(section).model_fields.items():
            if key not in written and getattr(section, key) == field.default:
                del data[name][key]
            elif before and key in written and before[name][key] == data[name][key]:
                data[name][key] = written[key]
    with atomic.replacing(run.config) as partial:
        partial.write_text(yaml12.dump(under_old_names(data, written_before)), encoding="utf-8")


def _as_it_was(run: RunDir) -> dict[str, Any] | None:
    """Return all values of `config.yaml`; None if it is of a version with other keys."""
    try:
        return load_run_config(run.config).model_dump(mode="json")
    except ConfigError:
        return None


def take_setup(run: RunDir, setup: str | None) -> None:
    """Make a file the run's setup.sh; None removes setup.sh."""
    if setup is None:
        run.setup.unlink(missing_ok=True)
    elif Path(setup) != run.setup:
        with atomic.replacing(run.setup) as partial:
            shutil.copyfile(setup, partial)


def is_trained(run: RunDir) -> bool:
    """Return whether the run has a checkpoint, complete or damaged."""
    return any(_CHECKPOINT.fullmatch(path.name) for path in run.checkpoints.glob("step_*"))


def journal_values(changes: Sequence[Change]) -> dict[str, list[object]]:
    """Return the old and the new value of each key, without secrets."""
    return {
        change.key: [_without_secrets(change.old), _without_secrets(change.new)]
        for change in changes
    }


def _read(
    run: RunDir, overrides: Sequence[str], base: Path, update: bool
) -> tuple[Config, Config, list[str]]:
    """Read the config without and with the overrides; list the keys that the new code changes."""
    if not update:
        before = resolve_paths(load_run_config(run.config), base)
        return before, resolve_paths(load_run_config(run.config, overrides), base), []
    data, lines = carry_over(read_old(run))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / run.config.name
        path.write_text(yaml12.dump(data), encoding="utf-8")
        before = resolve_paths(load_config(path), base)
        after = resolve_paths(load_config(path, overrides), base)
    return before, after, [redact(f"config           {line}") for line in lines]


def _is_own(change: Change, run: RunDir) -> bool:
    """Return whether the new value is the path of the run's own copy."""
    copies = {"data.hook": str(run.hook), "slurm.setup": str(run.setup)}
    return change.key in copies and copies[change.key] == str(change.new)


def _files_to_take(
    run: RunDir, final: Config, after: Config, given: Set[str], update: bool
) -> tuple[str, str | None, list[str]]:
    """Return the hook and the setup.sh to copy (given, recorded, or the run's own), and a note."""
    origin = origin_of(run)
    hook = after.data.hook if "data.hook" in given else origin.hook if update else str(run.hook)
    setup = final.slurm.setup
    if "slurm.setup" in given:
        setup = after.slurm.setup
    elif setup is not None and update:
        setup = origin.setup or setup
    if hook is None:
        note = f"hook             {run.hook}: where it was copied from is not known: it stays; "
        return str(run.hook), setup, [note + "to take another one, add data.hook=FILE"]
    return hook, setup, []


def _with_files(config: Config, hook: str, setup: str | None) -> Config:
    data = config.data.model_copy(update={"hook": hook})
    slurm = config.slurm.model_copy(update={"setup": setup})
    return config.model_copy(update={"data": data, "slurm": slurm})


def _update(run: RunDir, plan: Plan, entry: Entry) -> None:
    sources = plan.sources
    checkout = checkout_of_the_package(otherwise=Path.cwd())
    building = update_code.build(run, sources.data.hook, sources.slurm.setup, checkout)
    files = code_diff.compare(run, building)
    diff = code_diff.hook_diff(run, building)
    before, after = code_version(run), code_version(building)
    _say([f"code             {_version(before)} -> {_version(after)}", *_file_lines(files)])
    if diff:
        print_or_drop(redact(diff))
    names = {what: [file.name for file in files if file.what == what] for what in _WHATS}
    entry["code"] = {"before": before, "after": after, **names}
    update_code.commit(run, building, dump_config(plan.config), entry)


_WHATS = ("added", "removed", "changed")


def _file_lines(files: Sequence[code_diff.FileChange]) -> list[str]:
    return [f"file             {file}" for file in files] or ["file             all are the same"]


def _version(version: dict[str, str | None]) -> str:
    commit = version.get("commit")
    return f"{version.get('version') or 'unknown'}{f' ({commit[:10]})' if commit else ''}"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items()}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print_or_drop(line)


@contextmanager
def _writing(run: RunDir) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or run.path
        raise LaunchError(f"{where}: cannot be written: {error.strerror or error}") from None
