"""The checkpoints of a run by their names, without reading any of them."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llada_sft.run_dir import RunDir


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: Its step.
        time: When it was written, in seconds since 1970.
    """

    step: int
    time: float


def checkpoint_paths(run: RunDir) -> list[Path]:
    """Return the paths that are named like complete checkpoints, oldest first."""
    complete = (path for path in run.checkpoints.glob("step_*") if path.name[5:].isdecimal())
    return sorted(complete, key=lambda path: int(path.name[5:]))


def newest_of_run(run: RunDir) -> Path | None:
    """Return the newest path that is named like a complete checkpoint."""
    paths = checkpoint_paths(run)
    return paths[-1] if paths else None


def newest_step(run: RunDir) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    return max((int(path.name[5:]) for path in checkpoint_paths(run) if path.is_dir()), default=0)


def last_checkpoint(run: RunDir) -> Checkpoint | None:
    """Return the newest path that is named like a complete checkpoint, with its time.

    Raises:
        OSError: The folder cannot be read.
    """
    newest = newest_of_run(run)
    # lstat: it may be a broken link. And the run may have removed it just now.
    with suppress(FileNotFoundError):
        if newest is not None:
            return Checkpoint(int(newest.name[5:]), newest.lstat().st_mtime)
    return None
