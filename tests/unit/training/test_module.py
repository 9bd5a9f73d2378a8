"""A training step: its rate is the one that the schedule gives; and what is logged of it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_sft.config.sections.optim import OptimConfig
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.model import Network, NetworkConfig
from llada_sft.model.families import llada
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepFeed
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.module import DiffusionModule
from llada_sft.training.noising import StepBatch
from llada_sft.training.schedule.learning_rate import learning_rate
from llada_sft.training.schedule.plan import Basis, Schedule
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import local_steps, source

OPTIM = OptimConfig(lr=1e-3, final_lr=1e-4, warmup_steps=2, decay_fraction=0.5)
BASIS = Basis(1, 2, "examples", {"": 1}, None, [], "")
TOTAL = 8


class Optimizer:
    """Two groups, as DeepSpeed's has; remembers the rate of each at every step."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": 0.0}, {"lr": 0.0}]
        self.rates: list[list[float]] = []

    def step(self) -> None:
        self.rates.append([group["lr"] for group in self.param_groups])


class Zero3:
    """Stands in for the strategy: micro-batch i has the loss i + 1, and there are two ranks."""

    def __init__(self) -> None:
        self.accumulated: list[tuple[float, bool]] = []
        self.step_applied, self.gradient_norm = True, 3.0
        self._losses = 0

    def deepspeed_engine(self, batch: MicroBatch) -> Tensor:
        self._losses += 1
        return torch.tensor(float(self._losses))

    def accumulate(self, loss: Tensor, last: bool) -> None:
        self.accumulated.append((float(loss), last))

    def reduce(self, loss: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "mean"
        return loss / 2


class Module(DiffusionModule):
    """A module without Lightning's Trainer."""

    def __init__(self, first_step: int = 0, **more: Any) -> None:
        super().__init__(torch.nn.Identity, OPTIM, 2, **more)
        self.made, self.zero3, self.optimizer = first_step, Zero3(), Optimizer()
        self.logged: list[tuple[int, dict[str, float]]] = []

    global_step = property(lambda self: self.made)  # type: ignore[assignment]
    _zero3 = property(lambda self: self.zero3)  # type: ignore[assignment]
    trainer = property(lambda self: SimpleNamespace(world_size=1))  # type: ignore[assignment]

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return self.optimizer

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append((step, metrics))

    def train_on(self, batches: list[StepBatch]) -> "Module":
        for batch in batches:
            self.training_step(batch, 0)
            self.made += 1
        return self


def agreed_steps(first_step: int = 0) -> list[StepBatch]:
    """The steps of one rank from one on, each of two micro-batches of one example."""

    def local() -> list[LocalStep]:
        steps = list(local_steps(0, [2 * TOTAL], StepSize(1, 2)))
        return [
            replace(step, steps_left=max(0, TOTAL - 1 - number))
            for number, step in enumerate(steps)
        ][first_step:]

    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        schedule = Schedule(OPTIM, BASIS, first_step)
        feed = StepFeed(local(), source(), consensus, lambda: False, first_step, schedule=schedule)
        return list(feed)

    (batches,) = on_ranks(1, work)
    assert isinstance(batches, list), batches
    return batches


@pytest.mark.parametrize("first_step", [0, 1, 3, 6])
def test_every_step_has_the_rate_of_the_schedule(first_step: int) -> None:
    module = Module(first_step).train_on(agreed_steps(first_step))
    # By hand: up in two steps, constant to the fourth, then down by 0.225e-3 a step.
    by_hand = [0.5e-3, 1e-3, 1e-3, 1e-3, 0.775e-3, 0.55e-3, 0.325e-3, 0.1e-3]
    assert by_hand == pytest.approx([learning_rate(OPTIM, step, TOTAL) for step in range(TOTAL)])
    expected = by_hand[first_step:]
    # Both groups, and the step itself has it, not the one after.
    assert [one for one, _ in module.optimizer.rates] == pytest.approx(expected)
    assert [one for _, one in module.optimizer.rates] == pytest.approx(expected)
    logged = {step: metrics["lr"] for step, metrics in module.logged}
    steps = [step for step in range(first_step + 1, TOTAL + 1) if step % 2 == 0]
    assert logged == pytest.approx({step: by_hand[step - 1] for step in steps})


def test_a_step_sums_its_micro_batches_and_closes_with_the_last() -> None:
    module = Module().train_on(agreed_steps()[:2])
    assert module.zero3.accumulated == [(1, False), (2, True), (3, False), (4, True)]
    ((step, metrics),) = module.logged
    # The sum of the second step's, over two ranks.
    assert (step, metrics["loss"], metrics["gradient_norm"]) == (2, 3.5, 3.0)
    assert (metrics["examples"], metrics["skipped_steps"]) == (2, 0)


def test_a_step_that_was_not_made_is_reported_with_its_number() -> None:
    told: list[tuple[int, int, list[float], bool]] = []

    def report(step: int, batches: list[MicroBatch], losses: list[Tensor], last: bool) -> None:
        told.append((step, len(batches), [float(loss) for loss in losses], last))

    module = Module(5, report_skipped_step=report)
    module.zero3.step_applied = False
    module.train_on(agreed_steps(5))
    assert told == [(6, 2, [1, 2], False), (7, 2, [3, 4], False), (8, 2, [5, 6], True)]
    assert {step: metrics["skipped_steps"] for step, metrics in module.logged} == {6: 1, 8: 2}


def test_the_watchdog_hears_of_every_micro_batch() -> None:
    pulses: list[tuple[str, int]] = []
    module = Module(3, pulse=lambda phase, step: pulses.append((phase, step)))
    module.train_on(agreed_steps(3)[:2])
    assert pulses == [("step", 3), ("step", 3), ("step", 4), ("step", 4)]


def test_the_optimizer_is_fused() -> None:
    module = Module()
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 8, "vocab_size": 8}
    module.network = Network(NetworkConfig(llada.FAMILY.config_json(**sizes)))
    groups = module.configure_optimizers().param_groups
    assert [group["fused"] for group in groups] == [True, True]
