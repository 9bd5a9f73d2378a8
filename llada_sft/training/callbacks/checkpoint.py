"""Saves checkpoints at step boundaries, and stops the run where the ranks agreed to."""

from typing import Any

import lightning.pytorch as pl

from llada_sft.config.schema import TrainConfig
from llada_sft.run_dir import RunDir
from llada_sft.training import checkpoints
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepBatch, StepFeed
from llada_sft.training.notes import Notes, versions


class CheckpointSaver(pl.Callback):
    """Saves every N steps, at the last step, and when the ranks agreed to stop.

    Args:
        run: The run directory.
        config: The train section.
        consensus: The agreement of the ranks.
        feed: Knows whether to stop.
        fingerprints: Of this rank's files.
        notes: Tells the journal.
    """

    def __init__(
        self,
        run: RunDir,
        config: TrainConfig,
        consensus: Consensus,
        feed: StepFeed,
        fingerprints: dict[str, str],
        notes: Notes,
    ) -> None:
        self._run, self._config, self._consensus = run, config, consensus
        self._feed, self._fingerprints, self._notes = feed, fingerprints, notes
        # Whether the run ended because it was told to.
        self.stopped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._notes.resumed(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        self._notes.step_ended()
        step = trainer.global_step
        last = trainer.is_last_batch or step == trainer.max_steps
        self.stopped = self._feed.stop_agreed and not last
        if self.stopped:
            self._notes.told_to_stop(step)
        if last or self.stopped or step % self._config.checkpoint_every_steps == 0:
            self._save(trainer, step, batch)
        if self.stopped:
            # The time until the job is killed is short: no validation on the way out.
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def _save(self, trainer: pl.Trainer, step: int, batch: StepBatch) -> None:
        partial = checkpoints.partial_path(self._run.checkpoints, step)
        if trainer.is_global_zero:
            checkpoints.begin(self._run.checkpoints, step)
        self._consensus.barrier()
        trainer.save_checkpoint(partial)
        ranks: Any = self._consensus.gather((batch.positions, self._fingerprints))
        if trainer.is_global_zero:
            complete = checkpoints.finish(
                partial,
                manifest={
                    "step": step,
                    "world_size": trainer.world_size,
                    "versions": versions(),
                },
                data_state=checkpoints.DataState.merge(batch.epoch, ranks),
                keep=self._config.keep_checkpoints,
            )
            sizes = checkpoints.read_manifest(complete)["files"]
            self._notes.saved(step, sum(sizes.values()))
        self._consensus.barrier()
