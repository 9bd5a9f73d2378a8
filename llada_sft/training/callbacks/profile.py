"""A trace of a few steps, to see what they spend their time on (`train.profile`)."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity


class Profile(pl.Callback):
    """Records rank 0 from the start of a step to the end of another, and writes a Chrome trace.

    A run that stops or ends within these steps writes what it has. A trace that cannot be written
    is a warning: the training goes on.

    Args:
        steps: The first and the last step; None records nothing.
        folder: Where the trace is written; it is created.
        require_owner: Called before the trace is written; does not return if another process owns
            the run.
    """

    def __init__(
        self, steps: tuple[int, int] | None, folder: Path, require_owner: Callable[[], None]
    ) -> None:
        self._first, self._last = steps or (0, 0)
        self._folder, self._require_owner = folder, require_owner
        self._recorder: torch.profiler.profile | None = None
        self._began = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step + 1
        wanted = trainer.is_global_zero and self._first <= step <= self._last
        if not wanted or self._recorder is not None:
            return
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._began, self._recorder = step, torch.profiler.profile(activities=activities)
        self._recorder.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self._last:
            self._write(trainer.global_step, pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._write(trainer.global_step, pl_module.device)

    def _write(self, step: int, device: torch.device) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        if device.type == "cuda":
            # Kernels that still run belong to the last step.
            torch.cuda.synchronize(device)
        recorder.stop()
        self._require_owner()
        path = self._folder / f"rank_0_steps_{self._began}_to_{step}.json"
        try:
            self._folder.mkdir(exist_ok=True)
            recorder.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            print(f"warning: {path}: the profile is not written: {error}", file=sys.stderr)
        else:
            print(f"profile: {path}", flush=True)
