"""What the ranks of test_async_saving.py run: trainings whose writes are held up.

A write is held until the training has made a further step (`a_step`), or until the ranks wait for
it (`a_wait`): no test depends on how fast a disk is.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

import llada_sft.training.checkpoint.shard_writer as writing
import llada_sft.training.trainer as trainer_module
from llada_sft.config import load_config
from llada_sft.errors import LladaSftError
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import is_complete
from llada_sft.training.checkpoint.shard_writer import ShardWriter
from llada_sft.training.host import Host, SavedCheckpoint
from llada_sft.training.trainer import train
from tests.distributed.training_workers import placement

_LONG_S = 60


class Held(pl.Callback):
    """Holds writes, and looks at the run at each boundary before the saver does.

    Args:
        run: The run directory.
        until: `a_step`, `a_wait`, or nothing to hold up no write.
        at: What to do at which boundary.
    """

    def __init__(self, run: Path, until: str, at: dict[int, Callable[[], None]]) -> None:
        self._run, self._until, self._at = run, until, at
        self._changed, self._step = threading.Condition(), 0
        # The checkpoints that are held up, and that were waited for.
        self._held = self._waited = 0
        # Steps of the checkpoints whose writing began after a later step.
        self.late: set[int] = set()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        latest = self._run / "checkpoints/latest"
        if latest.exists():
            assert is_complete(latest.with_name(latest.read_text().strip()))
        step = trainer.global_step
        self._at.get(step, lambda: None)()
        with self._changed:
            self._step = step
            self._changed.notify_all()

    def waits(self) -> None:
        with self._changed:
            self._waited = self._held
            self._changed.notify_all()

    def hold(self, path: Path) -> None:
        """Wait in the thread that writes; only the second file of a rank is held up."""
        step = int(path.parents[1].stem.removeprefix("step_"))
        if "optim" not in path.name or threading.current_thread() is threading.main_thread():
            return

        def may_go() -> bool:
            later = {"a_step": self._step > step, "a_wait": self._waited == step}
            return later.get(self._until, True)

        with self._changed:
            self._held = step
            assert self._changed.wait_for(may_go, _LONG_S)
            if self._step > step:
                self.late.add(step)


def trained_each(config_file: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train one run after the other; `runs` are arguments of `trained`."""
    return [trained(config_file=config_file, **run) for run in runs]


def trained(
    folder: str,
    config_file: str,
    overrides: list[str],
    until: str = "",
    stop_at: int = 0,
    fill_at: int = 0,
    kill_at: int = 0,
) -> dict[str, Any]:
    """Train with writes that are held up.

    Args:
        folder, config_file, overrides: The run.
        until: What holds them up (`Held`).
        stop_at, fill_at, kill_at: The boundary at which rank 0 is told to stop, has filled the
            disk, or is killed.
    """
    run, told, notes = Path(folder), threading.Event(), list[Any]()
    zero = placement().rank == 0
    at = {
        stop_at: told.set,
        fill_at: lambda: _fill(run),
        kill_at: lambda: os.kill(os.getpid(), signal.SIGKILL),
    }
    held = Held(run, until, at if zero else {})
    saved: list[SavedCheckpoint] = []
    host = Host(stop_requested=told.is_set, note=notes.append, checkpoint_saved=saved.append)
    with pytest.MonkeyPatch.context() as patch:
        _hold(patch, held)
        try:
            config = load_config(config_file, overrides)
            outcome: str = train(config, RunDir(run), placement(), host)
        except LladaSftError as error:
            outcome = f"{type(error).__name__}: {error}"
    return {
        "outcome": outcome,
        "warnings": [note["detail"] for note in notes if note["event"] == "warning"],
        "saved": [checkpoint.step for checkpoint in saved],
        "late": sorted(held.late),
        "there": sorted(path.name for path in (run / "checkpoints").iterdir()),
    }


def _hold(patch: pytest.MonkeyPatch, held: Held) -> None:
    write, ended = writing.write_shard, ShardWriter.ended

    def write_shard(state: object, path: Path, *more: Any) -> Any:
        held.hold(path)
        return write(state, path, *more)

    def waiting(writer: ShardWriter, seconds: float = 0.0) -> bool:
        if seconds:
            held.waits()
        return ended(writer, seconds)

    patch.setattr(writing, "write_shard", write_shard)
    patch.setattr(ShardWriter, "ended", waiting)
    # It stands first among the callbacks; without a job there are no signals to claim.
    patch.setattr(trainer_module, "OwnSignals", lambda claim_signals: held)


def _fill(run: Path) -> None:
    # The shards of this rank that are not held up are being written meanwhile.
    with suppress(OSError), (run.parent / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
