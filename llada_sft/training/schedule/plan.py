"""The learning rate's plan of the training: kept in checkpoints, made again when needed.

A checkpoint keeps the schedule's `Point` and what it was planned for (`Basis`). While the basis is
the same, a resume continues from that point, bit for bit. If ranks, batch, epochs,
`train.max_steps`, the data or the hook changed, the rest of the schedule is planned again at the
first step, from the steps that the ranks report as left, and one line says how the rate changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llada_sft.config.schema import Config
from llada_sft.config.sections.optim import OptimConfig
from llada_sft.data.examples.hook import examples_key
from llada_sft.data.sources import Source
from llada_sft.data.steps.yields import RowYield
from llada_sft.training.consensus import Report
from llada_sft.training.schedule.learning_rate import Point, descent_at, rate_of


@dataclass(frozen=True)
class Basis:
    """What a schedule was planned for.

    Attributes:
        world_size: Number of ranks.
        batch: The global batch, in `unit`: examples or tokens.
        epochs: Of each source, by its name; "" is the name of a single dataset.
        max_steps: `train.max_steps`.
        shape: The keys of the optim section that decide where the rate falls.
        rows: `examples_key`: a hash of what decides which examples a row makes.
    """

    world_size: int
    batch: int
    unit: str
    epochs: Mapping[str, int]
    max_steps: int | None
    shape: Sequence[object]
    rows: str

    @staticmethod
    def of(config: Config, sources: Sequence[Source], world_size: int) -> "Basis":
        """Return the basis of a config on this number of ranks."""
        unit, config = config.global_batch_unit, config.in_examples
        optim, train = config.optim, config.train
        micro = config.data.max_tokens or train.micro_batch_size
        return Basis(
            world_size=world_size,
            batch=world_size * micro * train.accumulate_grad_batches,
            unit=unit,
            epochs={source.name: source.epochs for source in sources},
            max_steps=train.max_steps,
            shape=[optim.schedule, optim.warmup_steps, optim.decay_fraction],
            rows=examples_key(config.data),
        )

    @property
    def run_epochs(self) -> int:
        """Epochs of the run: named sources make all of their epochs within one."""
        return self.epochs.get("", 1)

    def changes(self, old: "Basis") -> list[str]:
        """Describe what differs from an older basis."""
        changes = []
        if (old.batch, old.unit) != (self.batch, self.unit):
            changes.append(f"global batch {old.batch:,} {old.unit} -> {self.batch:,} {self.unit}")
        elif old.world_size != self.world_size:
            changes.append(
                f"{old.world_size} -> {self.world_size} ranks, the same global batch of"
                f" {self.batch:,} {self.unit}"
            )
        changes += [
            f"{f'epochs of {name}' if name else 'train.epochs'} {old.epochs.get(name)} -> {count}"
            for name, count in self.epochs.items()
            if old.epochs.get(name) != count
        ]
        if old.max_steps != self.max_steps:
            changes.append(
                f"train.max_steps {_or_none(old.max_steps)} -> {_or_none(self.max_steps)}"
            )
        if old.shape != self.shape:
            changes.append("the schedule in the optim section changed")
        if old.rows != self.rows:
            changes.append("what makes examples of rows changed")
        return changes

    def has_length_of(self, old: "Basis") -> bool:
        """Return whether the training is as long as before, in epochs and `max_steps`."""
        return (self.epochs, self.max_steps) == (old.epochs, old.max_steps)


def _or_none(number: int | None) -> str:
    return "none" if number is None else f"{number:,}"


@dataclass(frozen=True)
class Planned:
    """The schedule of a checkpoint.

    Attributes:
        point: How far the training was.
        steps_left: Steps that were left then.
        basis: What the schedule was planned for.
        yields: For each rank and source, what its rows make.
    """

    point: Point
    steps_left: int
    basis: Basis
    yields: Sequence[Sequence[RowYield]] = ()

    def to_json(self) -> dict[str, Any]:
        point = self.point
        return {
            "position": point.position,
            "total_steps": point.total,
            "descent": point.descent,
            "steps_left": self.steps_left,
            "planned_for": asdict(self.basis),
            "yields": self.yields,
        }

    @staticmethod
    def from_json(kept: Mapping[str, Any] | None) -> "Planned | None":
        """Read what `to_json` returned; None if another version wrote it, or did not write any."""
        try:
            assert kept is not None
            return Planned(
                Point(kept["position"], kept["total_steps"], kept["descent"]),
                kept["steps_left"],
                Basis(**kept["planned_for"]),
                [[RowYield(*each) for each in of_rank] for of_rank in kept["yields"]],
            )
        except (AssertionError, KeyError, TypeError):
            return None

    def yields_for(self, basis: Basis, rank: int, data_changed: bool) -> Sequence[RowYield] | None:
        """Return what a rank's rows make; None if that must be estimated again."""
        same = (basis.world_size, basis.rows) == (self.basis.world_size, self.basis.rows)
        known = same and not data_changed and basis.epochs.keys() == self.basis.epochs.keys()
        return self.yields[rank] if known else None


@dataclass(frozen=True)
class Pace:
    """The schedule of one step.

    Attributes:
        rate: Its learning rate.
        planned: The schedule after the step, without the yields.
        total_steps: Steps of the whole training, as far as known at this step.
        estimated: Whether `total_steps` depends on a sample of the rows.
    """

    rate: float
    planned: Planned
    total_steps: int
    estimated: bool

    @property
    def is_last(self) -> bool:
        return self.planned.steps_left == 0


class Schedule:
    """The learning rate of each step, from what the ranks agreed on: the same on all ranks.

    Args:
        optim: The optim section.
        basis: What the schedule is planned for now.
        step: Steps that were made.
        kept: The checkpoint's schedule; None if there is none, or one of an older version.
        data_changed: Whether files changed since that checkpoint.
        say: Called with a line for the user.
        older_ratio: How many present steps one step of a checkpoint without a schedule is worth.
    """

    def __init__(
        self,
        optim: OptimConfig,
        basis: Basis,
        step: int = 0,
        kept: Planned | None = None,
        data_changed: bool = False,
        say: Callable[[str], None] = lambda line: None,
        older_ratio: float = 1.0,
    ) -> None:
        self._older_ratio = older_ratio
        self._optim, self._basis, self._first_step = optim, basis, step
        self._kept, self._data_changed, self._say = kept, data_changed, say
        self._point: Point | None = None

    def next(self, step: int, epoch: int, agreed: Report) -> Pace:
        """Return the schedule of a step; call this once for each step, in order.

        Args:
            step: Steps that were made before.
            epoch: The epoch of its rows.
            agreed: What all ranks reported for the step.
        """
        steps_left = self._steps_left(step, epoch, agreed)
        if self._point is None:
            self._point = self._begin(steps_left)
            self._say_what_is_planned(steps_left, agreed.estimated > 0)
        self._point = self._point.after_step(self._optim, step, steps_left)
        return Pace(
            rate=rate_of(self._optim, step, self._point.descent),
            planned=Planned(self._point, steps_left - 1, self._basis),
            total_steps=step + steps_left,
            estimated=agreed.estimated > 0 and steps_left > 1 and steps_left != self._limit(step),
        )

    def _steps_left(self, step: int, epoch: int, agreed: Report) -> int:
        """Count the steps that are left, including this one."""
        later_epochs = max(0, self._basis.run_epochs - 1 - epoch)
        steps_left = 1 + agreed.steps_left + later_epochs * agreed.epoch_steps
        limit = self._limit(step)
        return steps_left if limit is None else min(steps_left, limit)

    def _limit(self, step: int) -> int | None:
        # At least 1: the step that is fetched ahead may be past the last one.
        return self._basis.max_steps and max(1, self._basis.max_steps - step)

    def _begin(self, steps_left: int) -> Point:
        step, kept = self._first_step, self._kept
        if kept is None:
            # If `max_steps` ends the training, each step counts the same.
            done = step if steps_left == self._limit(step) else step * self._older_ratio
            return Point(done, done + steps_left, descent_at(self._optim, done, done + steps_left))
        if kept.basis == self._basis and not self._data_changed:
            return kept.point
        if not self._basis.has_length_of(kept.basis):
            planned_left = kept.steps_left * self._batch_ratio(kept.basis)
            return kept.point.lengthened(self._optim, step, planned_left, steps_left)
        point = kept.point.continued(steps_left)
        if kept.basis.shape != self._basis.shape:
            descent = descent_at(self._optim, point.position, point.total)
            point = replace(point, descent=descent)
        return point

    def _batch_ratio(self, old: Basis) -> float:
        """Return how many present steps one earlier step is worth."""
        return old.batch / self._basis.batch if old.unit == self._basis.unit else 1.0

    def _say_what_is_planned(self, steps_left: int, estimated: bool) -> None:
        assert self._point is not None
        step, kept = self._first_step, self._kept
        about = "about " if estimated else ""
        steps = f"{about}{step + steps_left:,} steps in all, {steps_left:,} of them left"
        if kept is None:
            if step:
                self._say(f"schedule: the checkpoint is of an older version and has none: {steps}")
            elif estimated:
                self._say(f"schedule: {steps}; estimated from a sample of the rows")
            return
        changes = self._basis.changes(kept.basis) + ["files changed"] * self._data_changed
        if not changes:
            return
        before = kept.point.after_step(self._optim, step, kept.steps_left)
        after = self._point.after_step(self._optim, step, steps_left)
        rates = [rate_of(self._optim, step, point.descent) for point in (before, after)]
        self._say(
            f"schedule: {'; '.join(changes)}: {steps} (before: {step + kept.steps_left:,});"
            f" the learning rate of step {step + 1:,} is {rates[1]:.4g} (before: {rates[0]:.4g})"
        )
