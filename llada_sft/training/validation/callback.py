"""When a run validates, and what becomes of the numbers.

A validation comes before the checkpoint of its step, so that this checkpoint knows of it. A run
that was signalled to stop does not validate: the job is killed soon. When it resumes, the
validation that was due is made first, so that it has the numbers of a run that never stopped.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from tqdm import tqdm

from llada_sft.config.sections.validation import metric_name
from llada_sft.model.layers.head import LossTerms
from llada_sft.training.consensus import Consensus
from llada_sft.training.log.answers_log import AnswersLog
from llada_sft.training.module import DiffusionModule
from llada_sft.training.noising import StepBatch
from llada_sft.training.validation.answers import Answers
from llada_sft.training.validation.batches import GridBatch, ValidationBatches
from llada_sft.training.validation.best import BestSoFar
from llada_sft.training.validation.results import Table, by_item, item_sums, set_numbers


class Validation(pl.Callback):
    """Validates every N steps.

    Args:
        batches: This rank's micro-batches.
        every_n_steps: `train.validate_every_steps`.
        consensus: Exchanges what the ranks have summed up.
        eos_token_id: What ends an answer.
        stop_agreed: Whether the ranks agreed to stop.
        best: Takes the numbers, and knows of the last validation that a resumed run has made.
        answers: Answers held-out prompts, if any are to be.
        answers_log: Where rank 0 logs them.
    """

    def __init__(
        self,
        batches: ValidationBatches,
        every_n_steps: int,
        consensus: Consensus,
        eos_token_id: int,
        stop_agreed: Callable[[], bool],
        best: BestSoFar,
        answers: Answers | None = None,
        answers_log: AnswersLog | None = None,
    ) -> None:
        self._answers, self._answers_log = answers, answers_log
        self._batches, self._every_n_steps = batches, every_n_steps
        self._consensus, self._eos = consensus, eos_token_id
        self._stop_agreed, self._best = stop_agreed, best

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > self._best.state.last_step:
            self._validate_if_due(trainer, cast(DiffusionModule, pl_module))
            # After a step, the saver ends the run; here its checkpoint is there already.
            trainer.should_stop = trainer.should_stop or bool(self._best.stop_reason)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        if not self._stop_agreed():
            self._validate_if_due(trainer, cast(DiffusionModule, pl_module))

    def _validate_if_due(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        step = trainer.global_step
        if step % self._every_n_steps:
            return
        with module.validating() as pulse:
            numbers = self._numbers(module, pulse)
            answered = self._answered(module, pulse)
        self._best.validated(step, numbers)
        module.log_metrics(step, numbers)
        if trainer.is_global_zero:
            if answered and self._answers_log is not None:
                self._answers_log.log(step, answered, module.loggers)
            tqdm.write(f"step {step}: validation loss {self._losses(numbers)}")
            sys.stdout.flush()

    def _numbers(self, module: DiffusionModule, pulse: Callable[[], None]) -> dict[str, float]:
        """Return the numbers of all sets, the same on every rank."""
        own = by_item(list(self._sums(module, pulse)))
        table = by_item(cast(list[Table], self._consensus.gather(own)))
        numbers: dict[str, float] = {}
        for items in self._batches.sets:
            numbers |= set_numbers(table, items)
        return numbers

    def _answered(self, module: DiffusionModule, pulse: Callable[[], None]) -> list[dict[str, Any]]:
        """Answer the prompts, if there are any; all ranks take part."""
        if self._answers is None:
            return []

        def predict(arguments: dict[str, Any]) -> Tensor:
            pulse()
            return module.evaluate(arguments)

        assert module.network is not None
        return [asdict(answer) for answer in self._answers.answer(module.network, predict)]

    def _sums(self, module: DiffusionModule, pulse: Callable[[], None]) -> Iterator[Table]:
        """Yield the sums of each micro-batch, read while the device computes the next one."""
        before: tuple[GridBatch, LossTerms] | None = None
        for batch in self._batches:
            pulse()
            moved = batch.batch.to(module.device)
            # Without a confidence loss it does not matter which row a position is of.
            rows = torch.zeros_like(moved.positions)
            moved.terms = terms = LossTerms(moved.coefficients, rows, 1, predicts=True)
            module.evaluate(moved)
            if before is not None:
                yield self._read(*before)
            before = batch, terms
        if before is not None:
            yield self._read(*before)

    def _read(self, batch: GridBatch, terms: LossTerms) -> Table:
        assert terms.losses is not None and terms.predictions is not None
        return item_sums(batch, terms.losses, terms.predictions, self._eos)

    def _losses(self, numbers: dict[str, float]) -> str:
        names = [items.name for items in self._batches.sets]
        shown = (f"{name} {numbers[metric_name(name, 'loss')]:.4f}".strip() for name in names)
        return ", ".join(shown)
