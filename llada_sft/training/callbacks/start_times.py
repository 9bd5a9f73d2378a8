"""Where a start spends its time: seconds of the clock and of this rank's CPU, phase by phase.

The last two phases are also reported to the job, which shows them in `status`.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl

from llada_sft.training.host import StartPhase
from llada_sft.training.noising import StepBatch

_TITLE = "the start of rank 0"


class _Mark(NamedTuple):
    phase: str
    clock_s: float
    cpu_s: float


class StartTimes(pl.Callback):
    """Prints a table after the first step, rank 0 only (`log.level: debug`).

    A phase lasts from the mark before it to its own; the first one from the process's start. CPU
    seconds are those of all threads of this process, and of no other one.

    Args:
        is_shown: Whether the table is printed.
        phase: Called with the phase that begins, and with the steps of the whole training.
        write: Prints the table.
    """

    def __init__(
        self,
        is_shown: bool,
        phase: Callable[[StartPhase, int | None], None] = lambda phase, total_steps: None,
        write: Callable[[str], object] = print,
    ) -> None:
        self._is_shown, self._phase, self._write = is_shown, phase, write
        self._is_over = False
        self._marks = [_Mark("", process_started(), 0.0)]

    def mark(self, phase: str) -> None:
        """Note that a phase has ended."""
        self._marks.append(_Mark(phase, time.time(), time.process_time()))

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.mark("Lightning's trainer")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.mark("network, DeepSpeed, checkpoint")
        self._phase("first step", None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._phase("training", None if batch.pace is None else batch.pace.total_steps)
        self.mark("first step")
        if self._is_shown and trainer.is_global_zero:
            self._write("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return the table, with the sums in its last line."""
        width = max(len(mark.phase) for mark in self._marks)
        lines = [f"{_TITLE:<{width}}  {'s':>8}  {'CPU s':>8}"]
        first, last = self._marks[0], self._marks[-1]
        for before, mark in zip(self._marks, self._marks[1:], strict=False):
            lines.append(_line(mark.phase, width, before, mark))
        return [*lines, _line("in all", width, first, last)]


def _line(phase: str, width: int, before: _Mark, after: _Mark) -> str:
    clock, cpu = after.clock_s - before.clock_s, after.cpu_s - before.cpu_s
    return f"{phase:<{width}}  {clock:>8.2f}  {cpu:>8.2f}"


def process_started() -> float:
    """Return when this process was started, as `time.time` counts."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    # The 22nd field of all: clock ticks since the machine was started.
    seconds = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - seconds)
