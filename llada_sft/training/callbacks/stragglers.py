"""Finds the rank that the others wait for, and warns if it is always the same one."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl

from llada_sft.training.consensus import Report
from llada_sft.training.nodes.own_time import OwnTime
from llada_sft.training.noising import StepBatch

# A rank is slow that needs so many times the median's own time, and at least so much longer, ...
SLOW_RATIO, SLOW_US = 1.25, 10_000
# ... in so many steps in a row.
SLOW_STEPS = 20


class Stragglers(pl.Callback):
    """Measures this rank's own time, and watches that of all ranks on rank 0.

    Args:
        own_time: Measures it.
        nodes: The node of each rank; empty where that is not known.
        warn: Called on rank 0 with a warning, once for each rank that is slow.
    """

    def __init__(
        self, own_time: OwnTime, nodes: Sequence[str], warn: Callable[[str], None]
    ) -> None:
        self._own_time, self._nodes, self._warn = own_time, nodes, warn
        self._rank, self._steps, self._ratios = -1, 0, 0.0
        self._warned: set[int] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._own_time.watch(pl_module.network.blocks())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        self._own_time.begin_step()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        self._own_time.end_step()
        if trainer.is_global_zero:
            self.see(batch.counts, trainer.global_step)

    def see(self, counts: Report, step: int) -> None:
        """Note what the ranks reported with a step."""
        if not is_slow(counts):
            self._steps = 0
            return
        if counts.slowest_rank != self._rank or self._steps == 0:
            self._rank, self._steps, self._ratios = counts.slowest_rank, 0, 0.0
        self._steps += 1
        self._ratios += counts.most_own_us / counts.own_us
        if self._steps == SLOW_STEPS and self._rank not in self._warned:
            self._warned.add(self._rank)
            node = f" ({self._nodes[self._rank]})" if self._nodes else ""
            self._warn(
                f"step {step}: the other ranks wait for rank {self._rank}{node}: in {SLOW_STEPS}"
                f" steps in a row it needed {self._ratios / SLOW_STEPS:.2f} times the median's time"
                " for what it does by itself (blocks, and waiting for data)"
            )


def is_slow(counts: Report) -> bool:
    """Return whether one rank needed much longer by itself than the median."""
    most, usual = counts.most_own_us, counts.own_us
    return usual > 0 and most >= SLOW_RATIO * usual and most >= usual + SLOW_US
