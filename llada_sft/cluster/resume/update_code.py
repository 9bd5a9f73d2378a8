"""Replaces a run's code: for `resume RUN --update-code`, and to launch a run that never started.

    RUN/update.partial-*/   being built: code/, versions.json, config.yaml, decision.json
    RUN/update/             complete: the update is decided; the next resume or launch finishes it
    RUN/code.N/             the previous code, kept

The rename from update.partial-* to update/ decides the update. An update that was interrupted
before the rename has changed nothing; `finish_update` completes an update that was interrupted
after it, and its steps can be repeated.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from llada_sft import atomic
from llada_sft.cluster import journal
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.launch.origin import Origin, origin_of
from llada_sft.cluster.launch.snapshot import take_snapshot
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

_DECISION = "decision.json"


def build(run: RunDir, hook: str, setup: str | None, launched_from: Path) -> RunDir:
    """Build a copy of the present code inside the run directory; `discard` or `commit` it.

    Nobody else may use the run: the folders of interrupted updates are removed.
    """
    for interrupted in run.path.glob(f"{run.update.name}.partial-*"):
        shutil.rmtree(interrupted, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{run.update.name}.partial-", dir=run.path)
    building = RunDir(Path(folder))
    try:
        building.code.mkdir()
        take_snapshot(building, hook, setup, launched_from, _origin(run, hook, setup))
    except BaseException:
        discard(building)
        raise
    return building


def discard(building: RunDir) -> None:
    """Remove the folder that `build` made."""
    shutil.rmtree(building.path, ignore_errors=True)


def commit(run: RunDir, building: RunDir, config: str, entry: Entry, keep: bool = True) -> None:
    """Replace the run's code and config by the code that was built and the new config.

    Args:
        run: The run, which nobody else uses.
        building: The result of `build`.
        config: The text of config.yaml.
        entry: The entry for the journal.
        keep: Whether to keep the previous code as code.N.
    """
    building.config.write_text(config, encoding="utf-8")
    decision = {"entry": entry, "kept": _next_kept(run), "keep": keep}
    (building.path / _DECISION).write_text(json.dumps(decision), encoding="utf-8")
    _sync(building.path)
    try:
        building.path.rename(run.update)
    except OSError:
        raise LaunchError(f"{run.path}: another update of it is under way; try again") from None
    finish_update(run)


def finish_update(run: RunDir) -> None:
    """Finish an update that was decided and then interrupted; nobody else may use the run."""
    decided = RunDir(run.update)
    if not decided.path.is_dir():
        return
    decision = _read_decision(decided)
    kept = run.path / decision["kept"]
    if decided.code.exists():
        if run.code.exists():
            run.code.rename(kept)
        decided.code.rename(run.code)
    for new, old in ((decided.versions, run.versions), (decided.config, run.config)):
        if new.exists():
            new.replace(old)
    if not decision["keep"]:
        shutil.rmtree(kept, ignore_errors=True)
    journal.append(run.journal, cast(Entry, decision["entry"]))
    # Renamed first, so that a half-removed update does not look decided.
    done = run.path / f"{run.update.name}.done"
    shutil.rmtree(done, ignore_errors=True)
    decided.path.rename(done)
    shutil.rmtree(done, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk, which must be before the rename."""
    for path in folder.rglob("*"):
        if path.is_file():
            atomic.sync(path)


def _read_decision(decided: RunDir) -> dict[str, Any]:
    try:
        decision = json.loads((decided.path / _DECISION).read_bytes())
        return {key: decision[key] for key in ("entry", "kept", "keep")}
    except (OSError, ValueError, LookupError, TypeError):
        raise LaunchError(
            f"{decided.path}: not an update that can be finished: {_DECISION} is damaged;"
            " remove the folder, and update again"
        ) from None


def _origin(run: RunDir, hook: str, setup: str | None) -> Origin:
    """Return where the files come from: the recorded origin for a file that the run keeps."""
    before = origin_of(run)
    return Origin(
        before.hook if hook == str(run.hook) else hook,
        before.setup if setup == str(run.setup) else setup,
    )


def _next_kept(run: RunDir) -> str:
    copies = run.kept_code()
    return f"{run.code.name}.{1 + int(copies[-1].suffix[1:]) if copies else 1}"
