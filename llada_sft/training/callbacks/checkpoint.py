"""Saves checkpoints at step boundaries, and stops the run where the ranks agreed to."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl

from llada_sft.config.schema import TrainConfig
from llada_sft.run_dir import RunDir
from llada_sft.training import checkpoints
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepBatch, StepFeed
from llada_sft.training.host import Phase

_PACKAGES = ("llada-sft", "torch", "lightning", "deepspeed", "transformers")


class CheckpointSaver(pl.Callback):
    """Saves every N steps, at the last step, and when the ranks agreed to stop.

    Args:
        run: The run directory.
        config: The train section.
        consensus: The agreement of the ranks.
        feed: Knows whether to stop.
        fingerprints: Of this rank's files.
        pulse: Says what this rank begins to do.
    """

    def __init__(
        self,
        run: RunDir,
        config: TrainConfig,
        consensus: Consensus,
        feed: StepFeed,
        fingerprints: dict[str, str],
        pulse: Callable[[Phase, int], None] = lambda phase, step: None,
    ) -> None:
        self._run, self._config, self._consensus = run, config, consensus
        self._feed, self._fingerprints, self._pulse = feed, fingerprints, pulse
        # Whether the run ended because it was told to.
        self.stopped = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        last = trainer.is_last_batch or step == trainer.max_steps
        self.stopped = self._feed.stop_agreed and not last
        if last or self.stopped or step % self._config.checkpoint_every_steps == 0:
            self._save(trainer, step, batch)
        if self.stopped:
            # The time until the job is killed is short: no validation on the way out.
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def _save(self, trainer: pl.Trainer, step: int, batch: StepBatch) -> None:
        self._pulse("checkpoint", step)
        partial = checkpoints.partial_path(self._run.checkpoints, step)
        if trainer.is_global_zero:
            checkpoints.begin(self._run.checkpoints, step)
        self._consensus.barrier()
        trainer.save_checkpoint(partial)
        ranks: Any = self._consensus.gather((batch.positions, self._fingerprints))
        if trainer.is_global_zero:
            checkpoints.finish(
                partial,
                manifest={
                    "step": step,
                    "world_size": trainer.world_size,
                    "versions": {name: version(name) for name in _PACKAGES},
                },
                data_state=checkpoints.DataState.merge(batch.epoch, ranks),
                keep=self._config.keep_checkpoints,
            )
        self._consensus.barrier()
        self._pulse("step", step)
