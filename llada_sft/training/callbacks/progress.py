"""Loss, speed, memory and time left: a bar on a terminal, plain lines in a log file."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from llada_sft.training.noising import StepBatch


class Progress(pl.Callback):
    """Shows how far the run is; rank 0 only.

    Args:
        every_n_steps: Steps between two lines of a log file.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._bar: tqdm[Any] | None = None
        self._start, self._first_step = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start, self._first_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(initial=self._first_step, unit="step")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        assert batch.pace is not None
        step, metrics, total = trainer.global_step, pl_module.last_metrics, batch.pace.total_steps
        if self._bar is not None:
            # The total may be an estimate, which improves from step to step.
            self._bar.total = total
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(_numbers(metrics))
        elif step % self._every_n_steps == 0:
            seconds_left = self._seconds_left(step, total)
            # ASCII: the encoding of a log may not have ≈.
            about = "~" if batch.pace.estimated else ""
            print(
                f"step {step}/{about}{total}  {_numbers(metrics)}  {_clock(seconds_left)} left",
                flush=True,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def _seconds_left(self, step: int, total: int) -> float:
        done = max(1, step - self._first_step)
        return (time.monotonic() - self._start) / done * (total - step)


def _numbers(metrics: dict[str, float]) -> str:
    if "loss" not in metrics:
        return ""
    bad = f"  {metrics['bad_rows']:,} bad rows" if metrics.get("bad_rows") else ""
    mfu = f"  MFU {metrics['mfu']:.1%}" if "mfu" in metrics else ""
    memory = f"  {metrics['gpu_gb']:.1f} GB" if "gpu_gb" in metrics else ""
    speed = f"{metrics['tokens_per_s']:,.0f} tokens/s{mfu}{memory}"
    return f"loss {metrics['loss']:.4f}  {speed}{bad}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
