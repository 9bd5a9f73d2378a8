"""What became of the rows: one line per epoch, and one if the run ends within an epoch."""

import sys
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.training.consensus import Consensus
from llada_sft.training.noising import StepBatch


class RowSummary(pl.Callback):
    """Sums the ranks' rows and prints one line; rank 0 only, but every rank takes part.

    Args:
        consensus: The agreement of the ranks.
        rank: Which one this is.
        first_step: The step from which this attempt resumes; rows before it are not counted.
    """

    def __init__(self, consensus: Consensus, rank: int, first_step: int) -> None:
        self._consensus, self._rank = consensus, rank
        self._first_step = first_step
        self._first_epoch: int | None = None
        self._epochs_ended = 0
        self._last: tuple[int, RowCounts] | None = None

    def epoch_ended(self, epoch: int, rows: RowCounts) -> None:
        """Print an epoch's line; the feed calls this one step before the epoch ends."""
        self._print(epoch, rows, "")
        self._epochs_ended = epoch + 1

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        self._last = (batch.epoch, batch.rows)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The same decision on all ranks, because epochs are the same.
        if self._last is not None and self._last[0] >= self._epochs_ended:
            self._print(*self._last, f" up to step {trainer.global_step}")

    def _print(self, epoch: int, rows: RowCounts, until: str) -> None:
        ranks: Any = self._consensus.gather(rows)
        whole = sum(ranks, start=RowCounts())
        if self._first_epoch is None:
            self._first_epoch = epoch
        resumed = self._first_step > 0 and epoch == self._first_epoch
        since = f" after step {self._first_step}" if resumed else ""
        if self._rank == 0 and whole.rows:
            tqdm.write(f"epoch {epoch + 1}{since}{until}: {whole}")
            sys.stdout.flush()
