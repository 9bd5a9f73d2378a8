"""Saves checkpoints at step boundaries, and stops the run where the ranks agreed to.

If any rank cannot write its part of a checkpoint, the whole checkpoint is removed, and
`train.on_failed_save` decides whether the run ends. A run that was signalled to stop stops in any
case, and resumes later from the previous checkpoint. The last checkpoint of a run must succeed.
"""

import errno
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, cast

import lightning.pytorch as pl

from llada_sft.config.schema import TrainConfig
from llada_sft.data.rows.position import Positions
from llada_sft.errors import PeerFailedError, SaveError
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.checkpoint.folder import (
    abandon_partial,
    create_partial,
    finish_partial,
    partial_path,
)
from llada_sft.training.checkpoint.shard_writer import write_error
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepFeed
from llada_sft.training.host import Phase
from llada_sft.training.log.step_journal import StepJournal, versions
from llada_sft.training.noising import StepBatch
from llada_sft.training.nonfinite import SkippedSteps
from llada_sft.training.strategy import Zero3Strategy


class CheckpointSaver(pl.Callback):
    """Saves every N steps, at the last step, and when the ranks agreed to stop.

    Args:
        run: The run directory.
        config: The train section.
        consensus: The agreement of the ranks.
        feed: Knows whether the ranks agreed to stop.
        fingerprints: Fingerprints of this rank's files.
        journal: Records steps and checkpoints.
        pulse: Called with the phase that this rank enters, and the step.
        examples_key: A hash of what decides which examples a row makes.
        skipped: Returns the steps that were skipped because their loss or gradient was not finite.
        require_owner: Does not return if another process owns the run now.
    """

    def __init__(
        self,
        run: RunDir,
        config: TrainConfig,
        consensus: Consensus,
        feed: StepFeed,
        fingerprints: dict[str, str],
        journal: StepJournal,
        pulse: Callable[[Phase, int], None] = lambda phase, step: None,
        examples_key: str = "",
        skipped: Callable[[], SkippedSteps] = SkippedSteps,
        require_owner: Callable[[], None] = lambda: None,
    ) -> None:
        self._examples_key, self._skipped = examples_key, skipped
        self._run, self._config, self._consensus = run, config, consensus
        self._feed, self._fingerprints = feed, fingerprints
        self._journal, self._pulse, self._require_owner = journal, pulse, require_owner
        # Whether the run ended because it was signalled to stop.
        self.stopped = False
        # Of this rank, in all of its files, once the last batch was trained.
        self._positions: Positions = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._journal.resumed(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        self._journal.step_ended()
        self._positions |= batch.positions
        step = trainer.global_step
        last = trainer.is_last_batch or step == trainer.max_steps
        self.stopped = self._feed.stop_agreed and not last
        if self.stopped:
            self._journal.stop_agreed(step)
        if last or self.stopped or step % self._config.checkpoint_every_steps == 0:
            self._save(trainer, step, batch, last)
        if self.stopped:
            # The job is killed soon: skip the validation.
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def _save(self, trainer: pl.Trainer, step: int, batch: StepBatch, last: bool) -> None:
        self._pulse("checkpoint", step)
        errors, num_bytes = self._write(trainer, step, batch)
        self._pulse("step", step)
        first = next((error for error in errors if error is not None), None)
        if first is None:
            total_steps = None if batch.pace is None else batch.pace.total_steps
            self._journal.checkpoint_saved(step, num_bytes, total_steps)
            return
        line = ""
        if trainer.is_global_zero:
            self._require_owner()
            partial = partial_path(self._run.checkpoints, step)
            line = abandon_partial(partial, first, num_bytes)
        line = str(self._consensus.gather(line)[0])
        if self.stopped or (self._config.on_failed_save == "go_on" and not last):
            self._journal.checkpoint_failed(
                step, f"{line}; {'stopping' if self.stopped else 'training'} continues"
            )
            return
        if errors[trainer.global_rank] is None:
            raise PeerFailedError(f"step {step}: another rank could not write; see its line")
        raise SaveError(f"{line}; {_remedy(first)}")

    def _write(
        self, trainer: pl.Trainer, step: int, batch: StepBatch
    ) -> tuple[list[OSError | None], int]:
        """Write a checkpoint; return, on every rank, all ranks' errors and the bytes of all shards.

        Between two collectives no rank raises: all ranks learn of every error before any of them
        continues.
        """
        folder, zero = self._run.checkpoints, trainer.is_global_zero
        errors = self._of_rank_0(zero, lambda: create_partial(folder, step))
        if any(errors):
            return errors, 0
        partial = partial_path(folder, step)
        # On each rank: another owner may be writing a checkpoint of the same step.
        self._require_owner()
        trainer.save_checkpoint(partial)
        writer = cast(Zero3Strategy, trainer.strategy).shard_writer
        written: Any = self._consensus.gather(
            (
                self._positions,
                self._fingerprints,
                batch.yields,
                writer.records(partial),
                writer.error,
                writer.num_bytes,
            )
        )
        errors = [error for *_, error, _ in written]
        num_bytes = sum(count for *_, count in written)
        if any(errors):
            return errors, num_bytes
        manifest = {
            "step": step,
            "world_size": trainer.world_size,
            "versions": versions(),
            "skipped_steps": asdict(self._skipped()),
        }
        if batch.pace is not None:
            planned = replace(batch.pace.planned, yields=[yields for _, _, yields, *_ in written])
            manifest["schedule"] = planned.to_json()
        data_state = DataState.merge(
            batch.epoch, (of_rank[:2] for of_rank in written), self._examples_key
        )
        records = {name: record for of_rank in written for name, record in of_rank[3].items()}

        def finish() -> None:
            finish_partial(
                partial,
                manifest=manifest,
                data_state=data_state,
                records=records,
                keep=self._config.keep_checkpoints,
                require_owner=self._require_owner,
            )

        return self._of_rank_0(zero, finish), num_bytes

    def _of_rank_0(self, zero: bool, write: Callable[[], object]) -> list[OSError | None]:
        """Let rank 0 write; return its error, if any, on all ranks."""
        error = None
        if zero:
            self._require_owner()
            try:
                write()
            except OSError as caught:
                error = write_error(caught)
        return cast(list[OSError | None], self._consensus.gather(error))


def _remedy(error: OSError) -> str:
    """Return what to do before the run is started again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space and start the run again"
    return "start the run again when that is fixed"
