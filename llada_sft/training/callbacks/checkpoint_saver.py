"""Saves checkpoints at step boundaries, and stops the run where the ranks agreed to.

With `train.async_checkpoints` a checkpoint is begun at its step: what the training will change is
copied, and a thread of each rank writes it. Each rank reports with its next steps when its writing
has ended; at the first boundary where that holds for all of them, the checkpoint is completed, or
removed. The end of a run, a stop and the next checkpoint wait for it. Until it is complete, nothing
names it: a run that is killed meanwhile resumes from the one before.

If any rank cannot write its part of a checkpoint, the whole checkpoint is removed, and
`train.on_failed_save` decides whether the run ends. A run that was signalled to stop stops in any
case, and resumes later from the previous checkpoint. The last checkpoint of a run must succeed.
"""

import errno
from collections.abc import Callable, Mapping
from typing import Any, cast

import lightning.pytorch as pl

from llada_sft.config.sections.train import TrainConfig
from llada_sft.data.rows.position import Positions
from llada_sft.errors import LladaSftError, PeerFailedError, SaveError
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.begun import Begun
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.checkpoint.folder import (
    abandon_partial,
    create_partial,
    finish_partial,
    partial_path,
)
from llada_sft.training.checkpoint.shard_writer import ShardWriter, write_error
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepFeed
from llada_sft.training.host import Phase
from llada_sft.training.log.step_journal import StepJournal
from llada_sft.training.masks.level_losses import LevelLosses
from llada_sft.training.noising import StepBatch
from llada_sft.training.nonfinite import SkippedSteps
from llada_sft.training.strategy import Zero3Strategy
from llada_sft.training.validation.best import BestSoFar

# How often ranks that wait for a checkpoint tell each other how far they are.
_POLL_S = 0.5


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
        levels: The losses by noise level, if levels are drawn by them.
        adapters: What checkpoints say about the adapters that are trained, if any.
        best: The best validation so far, whose checkpoint is saved and kept; it may end the run.
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
        levels: LevelLosses | None = None,
        adapters: Mapping[str, object] | None = None,
        best: BestSoFar | None = None,
    ) -> None:
        self._best = best or BestSoFar()
        self._examples_key, self._skipped = examples_key, skipped
        self._levels, self._adapters = levels, adapters
        self._run, self._config, self._consensus = run, config, consensus
        self._feed, self._fingerprints = feed, fingerprints
        self._journal, self._pulse, self._require_owner = journal, pulse, require_owner
        # Whether the run ended because it was signalled to stop.
        self.stopped = False
        # Of this rank, in all of its files, once the last batch was trained.
        self._positions: Positions = {}
        # Being written in the background; and how many were, since the attempt started.
        self._begun: Begun | None = None
        self._num_begun = 0
        self._ending = False

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
        early = bool(self._best.stop_reason)
        last = early or trainer.is_last_batch or step == trainer.max_steps
        self.stopped = self._feed.stop_agreed and not last
        if self.stopped:
            self._journal.stop_agreed(step)
        due = last or self.stopped or step % self._config.checkpoint_every_steps == 0
        due = due or self._best.is_best(step)
        if due or self._is_written(trainer.world_size):
            self._complete_begun(trainer)
        if due:
            self._save(trainer, step, batch, last)
        if self.stopped or early:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._complete_begun(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Complete what was begun after a user's mistake, which ends all ranks at the same step."""
        if isinstance(exception, LladaSftError):
            # The mistake is what the user must learn of: a failed write is a warning.
            self._ending = True
            self._complete_begun(trainer)

    @property
    def writes_ended(self) -> int:
        """How many of this rank's writes in the background have ended, failed ones included."""
        begun = self._begun
        return self._num_begun - int(begun is not None and not begun.writer.ended())

    def _is_written(self, world_size: int) -> bool:
        """Whether all ranks have reported the end of every write that was begun."""
        return self._feed.writes_ended == self._num_begun * world_size

    def _save(self, trainer: pl.Trainer, step: int, batch: StepBatch, last: bool) -> None:
        """Save a checkpoint; in the background unless the run ends with it."""
        background = self._config.async_checkpoints and not (last or self.stopped)
        self._pulse("checkpoint", step)
        begun, errors = self._begin(trainer, step, batch, last, background)
        if any(errors):
            self._settle(trainer, begun, errors, 0)
        elif background:
            self._begun, self._num_begun = begun, self._num_begun + 1
            self._journal.checkpoint_begun()
            if self._num_begun == 1 and trainer.is_global_zero:
                copied = begun.writer.num_bytes / 1e9
                print(
                    f"checkpoints are copied: {copied:.3g} GB of host memory for each rank",
                    flush=True,
                )
        else:
            self._settle(trainer, begun, *self._finish(trainer, begun))
        self._pulse("step", step)

    def _complete_begun(self, trainer: pl.Trainer) -> None:
        """Wait until all ranks have written what was begun, if anything, and complete it."""
        if (begun := self._begun) is None:
            return
        self._pulse("checkpoint", trainer.global_step)
        self._wait(begun.writer, trainer.global_step)
        self._begun = None
        self._settle(trainer, begun, *self._finish(trainer, begun))
        self._pulse("step", trainer.global_step)

    def _wait(self, writer: ShardWriter, step: int) -> None:
        """Wait for the writes of all ranks; only bytes that are written count as progress."""
        before = -1
        while True:
            ranks: Any = self._consensus.gather((writer.ended(_POLL_S), writer.progress))
            if all(ended for ended, _ in ranks):
                return
            if (written := sum(progress for _, progress in ranks)) != before:
                self._pulse("checkpoint", step)
            before = written

    def _settle(
        self, trainer: pl.Trainer, begun: Begun, errors: list[OSError | None], num_bytes: int
    ) -> None:
        """Record a checkpoint that was completed, or remove one that failed."""
        step = begun.step
        first = next((error for error in errors if error is not None), None)
        if first is None:
            write_s = begun.writer.seconds if begun.background else 0.0
            self._journal.checkpoint_saved(step, num_bytes, begun.total_steps, write_s)
            return
        self._best.not_saved(step)
        line = ""
        if trainer.is_global_zero:
            self._require_owner()
            partial = partial_path(self._run.checkpoints, step)
            line = abandon_partial(partial, first, num_bytes)
        line = str(self._consensus.gather(line)[0])
        ending = self.stopped or self._ending
        if ending or (self._config.on_failed_save == "go_on" and not begun.last):
            self._journal.checkpoint_failed(
                step, f"{line}; {'stopping' if ending else 'training'} continues"
            )
            return
        if errors[trainer.global_rank] is None:
            raise PeerFailedError(f"step {step}: another rank could not write; see its line")
        raise SaveError(f"{line}; {_remedy(first)}")

    def _begin(
        self, trainer: pl.Trainer, step: int, batch: StepBatch, last: bool, background: bool
    ) -> tuple[Begun, list[OSError | None]]:
        """Write a checkpoint's shards, or copy what a thread then writes.

        Returns:
            What `_finish` needs; and of every rank why no folder could be made, if so.
        """
        folder, zero = self._run.checkpoints, trainer.is_global_zero
        begun = Begun(
            step=step,
            last=last,
            background=background,
            writer=cast(Zero3Strategy, trainer.strategy).shard_writer,
            epoch=batch.epoch,
            positions=dict(self._positions),
            yields=batch.yields,
            skipped=self._skipped(),
            planned=None if batch.pace is None else batch.pace.planned,
            total_steps=None if batch.pace is None else batch.pace.total_steps,
            levels=(
                None
                if self._levels is None or batch.drawn_with is None
                else self._levels.state(batch.drawn_with, step)
            ),
            adapters=self._adapters,
            validation=self._best.state,
        )
        errors = self._of_rank_0(zero, lambda: create_partial(folder, step))
        if not any(errors):
            # On each rank: another owner may be writing a checkpoint of the same step.
            self._require_owner()
            options = {"background": background}
            trainer.save_checkpoint(partial_path(folder, step), storage_options=options)
        return begun, errors

    def _finish(self, trainer: pl.Trainer, begun: Begun) -> tuple[list[OSError | None], int]:
        """Complete a checkpoint whose shards were written, or could not be.

        Between two collectives no rank raises: all ranks learn of every error before any of them
        continues.

        Returns:
            On every rank, all ranks' errors and the bytes of all shards.
        """
        partial, writer = partial_path(self._run.checkpoints, begun.step), begun.writer
        written: Any = self._consensus.gather(
            (
                begun.positions,
                self._fingerprints,
                begun.yields,
                begun.levels,
                writer.records(partial),
                writer.error,
                writer.num_bytes,
            )
        )
        errors = [error for *_, error, _ in written]
        num_bytes = sum(count for *_, count in written)
        if any(errors):
            return errors, num_bytes
        manifest = begun.manifest(
            [yields for _, _, yields, *_ in written], [levels for _, _, _, levels, *_ in written]
        )
        data_state = DataState.merge(
            begun.epoch, (of_rank[:2] for of_rank in written), self._examples_key
        )
        records = {name: record for of_rank in written for name, record in of_rank[4].items()}

        def finish() -> None:
            finish_partial(
                partial,
                manifest=manifest,
                data_state=data_state,
                records=records,
                keep=self._config.keep_checkpoints,
                require_owner=self._require_owner,
            )

        return self._of_rank_0(trainer.is_global_zero, finish), num_bytes

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
