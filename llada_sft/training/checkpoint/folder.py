"""Checkpoints: written under another name, verified, renamed, and only then pointed to.

    checkpoints/
      step_200/            complete
        checkpoint/        DeepSpeed's shards, with Lightning's loop state in them
        data_state.json    for each shard its fingerprint and its position: one file for all ranks
        checkpoint.json    step, number of ranks, versions, and size and checksum of every file
      step_300.partial/    being written, or left by a crash: never read, cleaned at the next start
      step_100.damaged/    found damaged when a run resumed: never read, counted or removed
      step_200.universal/  step_200 converted for another number of ranks, while it is needed
      latest               the name of the newest

No state of a random generator is kept: every random choice of a run is keyed (DESIGN: noise by
(seed, epoch, file, line), order by (seed, epoch, file)), so there is no state to restore.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llada_sft import atomic
from llada_sft.errors import CheckpointError
from llada_sft.training.checkpoint.checksums import FileRecord
from llada_sft.training.checkpoint.data_state import DATA_STATE, DataState
from llada_sft.training.checkpoint.manifest import MANIFEST, read_manifest, sealed

# Lightning's name for the folder of DeepSpeed's shards.
DEEPSPEED_TAG = "checkpoint"
_LATEST = "latest"
_COMPLETE = re.compile(r"step_(\d+)")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the complete checkpoints of a run, oldest first, with their steps."""
    return [(step, path) for step, path in list_named(folder) if is_complete(path)]


def list_named(folder: Path) -> list[tuple[int, Path]]:
    """Return everything that has the name of a checkpoint, oldest first, whatever it is.

    A file, or a link to a disk that is not mounted, counts as a checkpoint that cannot be read.
    """
    paths = folder.glob("step_*")
    return sorted(
        (int(match[1]), path) for path in paths if (match := _COMPLETE.fullmatch(path.name))
    )


def list_damaged(folder: Path) -> list[Path]:
    """Return the checkpoints that `set_aside` renamed."""
    return sorted(folder.glob("step_*.damaged*"))


def list_set_aside(folder: Path) -> list[tuple[int, Path]]:
    """Return the set-aside checkpoints with their steps, without those that a person renamed."""
    steps = ((_COMPLETE.fullmatch(path.name.split(".")[0]), path) for path in list_damaged(folder))
    return [(int(step[1]), path) for step, path in steps if step]


def chosen_step(folder: Path, step: int | None) -> int:
    """Return the step of the checkpoint that a person asks for, also of one that is damaged.

    Args:
        folder: The checkpoints of a run.
        step: None takes the newest.

    Raises:
        CheckpointError: There is none of this step.
    """
    named, damaged = dict(list_named(folder)), dict(list_set_aside(folder))
    if not named and not damaged:
        raise CheckpointError(f"{folder}: no complete checkpoint; train first")
    if step is None:
        return max(named | damaged)
    if step not in named | damaged:
        steps = ", ".join(map(str, sorted(named)))
        raise CheckpointError(
            f"{folder}: no checkpoint of step {step}; there are {steps or 'none'}"
        )
    return step


def steps_to_average(folder: Path, step: int | None, number: int) -> list[int]:
    """Return the steps of the newest checkpoints up to one that a person asks for, oldest first.

    Raises:
        CheckpointError: There is none of this step, or too few before it.
    """
    last = chosen_step(folder, step)
    if number == 1:
        return [last]
    steps = [known for known, _ in list_named(folder) if known <= last]
    if len(steps) < number:
        raise CheckpointError(
            f"{folder}: {number} checkpoints up to step {last} are needed, there are"
            f" {', '.join(map(str, steps)) or 'none'}; train.keep_checkpoints says how many stay"
        )
    return steps[-number:]


def _best_of(manifest: Mapping[str, Any]) -> int | None:
    """Return the step of the best validation that a checkpoint knows of."""
    best = (manifest.get("validation") or {}).get("best")
    return None if best is None else int(best["step"])


def best_step(folder: Path) -> int:
    """Return the step of the best checkpoint by `train.keep_best`: the newest one names it.

    Raises:
        CheckpointError: No checkpoint is complete, or the newest names none that is there.
    """
    complete = dict(list_checkpoints(folder))
    if not complete:
        raise CheckpointError(f"{folder}: no complete checkpoint; train first")
    newest = max(complete)
    best = _best_of(read_manifest(complete[newest]))
    if best is None:
        raise CheckpointError(
            f"{complete[newest]}: no validation was compared; set train.keep_best, or choose a"
            " checkpoint with  --step"
        )
    if best not in complete:
        raise CheckpointError(
            f"{folder}: the best checkpoint, of step {best}, is gone; choose another one with"
            "  --step"
        )
    return best


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it never counts as one again; rank 0 only.

    Raises:
        OSError: It cannot be renamed.
    """
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    number = 2
    while aside.exists():
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged.{number}")
        number += 1
    checkpoint.rename(aside)
    atomic.sync(checkpoint.parent)
    return aside


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, whatever `latest` says."""
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1][1] if checkpoints else None


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the manifest is there with its size."""
    try:
        sizes = read_manifest(checkpoint)["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    # Whatever a crash may leave of a manifest: nothing, half of it, zeros.
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def point_to(checkpoint: Path) -> None:
    """Make `latest` name a checkpoint; rank 0 only.

    Raises:
        OSError: It cannot be written.
    """
    latest = checkpoint.with_name(_LATEST)
    with atomic.replacing(latest) as partial:
        atomic.write_synced(partial, checkpoint.name + "\n")


def universal_path(checkpoint: Path) -> Path:
    """Return the folder that a checkpoint is converted into for another number of ranks."""
    return checkpoint.with_name(f"{checkpoint.name}.universal")


def create_partial(folder: Path, step: int) -> Path:
    """Make an empty folder for a checkpoint that is being written; rank 0 only."""
    partial = partial_path(folder, step)
    remove(partial)
    partial.mkdir(parents=True)
    return partial


def partial_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step}.partial"


def finish_partial(
    partial: Path,
    manifest: Mapping[str, Any],
    data_state: DataState,
    records: Mapping[str, FileRecord],
    keep: int,
    require_owner: Callable[[], None] = lambda: None,
) -> Path:
    """Verify a checkpoint that all ranks have written, and make it the newest; rank 0 only.

    Args:
        partial: What `create_partial` returned.
        manifest: Step, number of ranks, versions.
        data_state: The position of the data on all ranks.
        records: Size and checksum of the files that all ranks wrote, by the path within `partial`.
        keep: Number of checkpoints to keep, this one included; that of the best validation so far,
            which the manifest names, is kept in addition.
        require_owner: Called before each rename; does not return if another process owns the run.

    Raises:
        OSError: It cannot be written, or a file of a rank is missing: call `abandon_partial`.
    """
    text = json.dumps(data_state.to_json(), indent=1)
    atomic.write_synced(partial / DATA_STATE, text)
    records = {**records, DATA_STATE: FileRecord.of(text.encode())}
    there = {str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()}
    if unknown := sorted(there - records.keys()):
        raise OSError(errno.EIO, f"no rank has written {', '.join(unknown)}")
    atomic.write_synced(partial / MANIFEST, sealed(manifest, records))
    due = shards_due((path.name for path in _shards(partial)), manifest["world_size"])
    if not is_complete(partial) or _num_shards(partial) != due:
        raise OSError(errno.EIO, "not every rank's files are there")
    # The ranks have synced their shards; this syncs the other files, and all names.
    for path in (*partial.iterdir(), partial):
        atomic.sync(path)
    complete, latest = partial.with_suffix(""), partial.parent / _LATEST
    # Written before the checkpoint has its name: the rename later needs no free space.
    next_latest = atomic.partial_of(latest)
    atomic.write_synced(next_latest, complete.name + "\n")
    require_owner()
    if complete.exists() or complete.is_symlink():
        # Moved away by one rename: what a crash leaves must not look like a damaged checkpoint.
        replaced = partial.with_suffix(".replaced.partial")
        remove(replaced)
        complete.rename(replaced)
    partial.rename(complete)
    # The checkpoint is complete: what fails from here on is cleaned up later.
    with suppress(OSError):
        require_owner()
        next_latest.replace(latest)
    with suppress(OSError):
        # Older checkpoints are removed after the new one is on the disk, even without `latest`.
        atomic.sync(partial.parent)
        require_owner()
        clean_partial(partial.parent)
        _prune(partial.parent, manifest["step"], keep, _best_of(manifest), require_owner)
    return complete


def abandon_partial(partial: Path, error: OSError, num_bytes: int) -> str:
    """Remove the files of a checkpoint that failed, and return one line about it; rank 0 only.

    Args:
        partial: What `create_partial` returned, or would have returned.
        error: The error of the first rank that failed.
        num_bytes: Bytes that all ranks had to write; 0 if unknown.
    """
    remove(partial)
    atomic.partial_of(partial.with_name(_LATEST)).unlink(missing_ok=True)
    complete = list_checkpoints(partial.parent)
    before = (
        f"the checkpoint of step {complete[-1][0]} is intact" if complete else "it is the first one"
    )
    room = room_for(partial.parent, error, num_bytes)
    return f"{partial}: cannot be written: {error.strerror or error}{room}: {before}"


def clean_partial(folder: Path) -> None:
    """Remove the remains of crashes and conversions; rank 0 only."""
    for pattern in ("step_*.partial", "step_*.universal"):
        for path in folder.glob(pattern):
            remove(path)


def remove(path: Path) -> None:
    """Remove a folder, a file, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def shards_due(names: Iterable[str], world_size: int) -> int:
    """Return how many files of DeepSpeed's a checkpoint has.

    At stage 3 they are two of each rank, one of the model and one of the optimizer. At stages 1 and
    2 there is one of the whole model, `mp_rank_00_model_states.pt`, and the optimizer's.
    """
    whole = any(Path(name).name.startswith("mp_rank_") for name in names)
    return world_size + 1 if whole else 2 * world_size


def _num_shards(checkpoint: Path) -> int:
    return len(_shards(checkpoint))


def _shards(checkpoint: Path) -> list[Path]:
    # In bf16 the optimizer's name starts with bf16_.
    return list((checkpoint / DEEPSPEED_TAG).glob("*mp_rank_*_states.pt"))


def _prune(
    folder: Path, newest: int, keep: int, best: int | None, require_owner: Callable[[], None]
) -> None:
    # Only complete checkpoints are counted and removed, and none of a later step than the one just
    # written: a later one was skipped when the run resumed, and may be unusable.
    complete = [(step, path) for step, path in list_checkpoints(folder) if step <= newest]
    for step, path in complete[:-keep]:
        if step == best:
            continue
        # Renamed first: a half-removed checkpoint must not look like one.
        require_owner()
        doomed = path.with_suffix(".partial")
        path.rename(doomed)
        remove(doomed)


def room_for(folder: Path, error: OSError, num_bytes: int) -> str:
    """Return how much space is needed and free, if the error is about space; empty otherwise."""
    if not num_bytes or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    needed = f"; {_megabytes(num_bytes)} needed"
    if error.errno == errno.EDQUOT:
        # What remains of a quota cannot be seen here.
        return needed
    return f"{needed}, {_megabytes(shutil.disk_usage(folder).free)} free"


def _megabytes(num_bytes: int) -> str:
    millions = num_bytes / 1e6
    return f"{millions:,.0f} MB" if millions >= 10 else f"{millions:.1f} MB"
