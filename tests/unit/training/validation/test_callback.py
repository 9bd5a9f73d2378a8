"""When a run validates: every N steps, before a stop never, and after it what was due."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llada_sft.config.sections.validation import EarlyStopConfig
from llada_sft.training.consensus import Consensus
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.validation.best import BestSoFar, Lowest, ValidationState
from llada_sft.training.validation.callback import Validation
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import EOS, TABLE, logits_at
from tests.unit.training.validation.test_batches import batches_of, rows


class Module:
    """A network that is a table; remembers what is logged."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.pulses = 0

    @contextmanager
    def validating(self) -> Iterator[Callable[[], None]]:
        def pulse() -> None:
            self.pulses += 1

        yield pulse

    def evaluate(self, batch: MicroBatch) -> None:
        logits, terms = logits_at(batch, TABLE), batch.terms
        assert terms is not None and terms.predicts
        terms.losses = F.cross_entropy(logits, batch.targets, reduction="none")
        terms.predictions = logits.argmax(-1)

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append((step, metrics))


class Run:
    """Steps of one rank with a validation every 5 steps."""

    def __init__(
        self,
        consensus: Consensus,
        rank: int = 0,
        world_size: int = 1,
        last_step: int = 0,
        best: BestSoFar | None = None,
    ) -> None:
        self.module, self.stop_agreed = Module(), False
        self.trainer: Any = SimpleNamespace(
            global_step=0, is_global_zero=rank == 0, should_stop=False
        )
        self.callback = Validation(
            batches_of([rows(3, 4, 5, 6, 2, name="dev"), rows(2, name="hard")], rank, world_size),
            5,
            consensus,
            EOS,
            stop_agreed=lambda: self.stop_agreed,
            best=best or BestSoFar(state=ValidationState(last_step)),
        )

    def start(self, step: int) -> "Run":
        module: Any = self.module
        self.trainer.global_step = step
        self.callback.on_train_start(self.trainer, module)
        return self

    def steps(self, until: int) -> "Run":
        module: Any = self.module
        batch: Any = None
        while self.trainer.global_step < until:
            self.trainer.global_step += 1
            self.callback.on_train_batch_end(self.trainer, module, None, batch, 0)
        return self

    @property
    def validated(self) -> list[int]:
        return [step for step, _ in self.module.logged]


def alone(work: Callable[[Run], object], **more: Any) -> Run:
    def on_rank(rank: int, consensus: Consensus) -> Run:
        run = Run(consensus, **more)
        work(run)
        return run

    (run,) = on_ranks(1, on_rank)
    assert isinstance(run, Run), run
    return run


def test_every_n_steps() -> None:
    assert alone(lambda run: run.start(0).steps(16)).validated == [5, 10, 15]


def test_a_run_that_stops_does_not_validate_and_does_so_when_it_resumes() -> None:
    def stopped(run: Run) -> None:
        run.start(0).steps(9)
        run.stop_agreed = True
        run.steps(10)

    first = alone(stopped)
    assert first.validated == [5]
    # The checkpoint of step 10 knows that the last validation was at step 5.
    assert alone(lambda run: run.start(10).steps(12), last_step=5).validated == [10]
    assert alone(lambda run: run.start(10).steps(12), last_step=10).validated == []
    assert alone(lambda run: run.start(9).steps(12), last_step=5).validated == [10]


def test_a_run_whose_missing_validation_is_one_too_many_does_not_train() -> None:
    early = EarlyStopConfig(metric="validation/dev/loss", patience=1)
    for lowest, ends in ((0.0, True), (99.0, False)):
        state = ValidationState(5, lowest=Lowest(early.metric, lowest, 5))
        best = BestSoFar(early_stop=early, state=state)
        run = alone(lambda run: run.start(10), best=best)
        assert (run.validated, run.trainer.should_stop) == ([10], ends)


def test_all_ranks_have_the_same_numbers_on_any_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    def work(rank: int, consensus: Consensus) -> Module:
        return Run(consensus, rank, world_size).start(0).steps(5).module

    logged = []
    for world_size in (1, 2, 4, 9):
        modules = on_ranks(world_size, work)
        logged += [module.logged for module in modules]
        # The watchdog hears of each forward pass, of which all ranks make the same number.
        assert len({module.pulses for module in modules}) == 1
    assert all(each == logged[0] for each in logged)
    ((_, numbers),) = logged[0]
    dev, hard = numbers["validation/dev/loss"], numbers["validation/hard/loss"]
    line = f"step 5: validation loss dev {dev:.4f}, hard {hard:.4f}\n"
    assert capsys.readouterr().out == 4 * line
