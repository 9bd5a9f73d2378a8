"""The best validation so far: whose checkpoint is kept, and when a training ends early.

Both depend on numbers of validations alone, which are the same on all ranks, and their state is in
every checkpoint: a run that resumes decides as one that was never interrupted. Lower is better; a
number that is NaN or infinite is never better.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llada_sft.config.sections.validation import EarlyStopConfig


@dataclass(frozen=True)
class Lowest:
    """The lowest value of a number, and the step of that validation."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class ValidationState:
    """What a checkpoint keeps.

    Attributes:
        last_step: Of the last validation.
        best: By `train.keep_best`.
        lowest: By `train.early_stop`.
        misses: Validations since then that were not lower.
    """

    last_step: int = 0
    best: Lowest | None = None
    lowest: Lowest | None = None
    misses: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(state: Mapping[str, Any] | None) -> "ValidationState":
        """Return the state of a checkpoint; None: of one that has none."""
        if state is None:
            return ValidationState()
        records = {
            name: Lowest(**state[name]) for name in ("best", "lowest") if state[name] is not None
        }
        return ValidationState(state["last_step"], misses=state["misses"], **records)


@dataclass
class BestSoFar:
    """Follows the validations of a run.

    Args:
        keep_best: The metric of `train.keep_best`.
        early_stop: `train.early_stop`.
        state: The checkpoint's. What it says of another metric is forgotten.
    """

    keep_best: str | None = None
    early_stop: EarlyStopConfig | None = None
    state: ValidationState = field(default_factory=ValidationState)
    _best_before: Lowest | None = None

    def __post_init__(self) -> None:
        best, lowest = self.state.best, self.state.lowest
        if best is not None and best.metric != self.keep_best:
            self.state = replace(self.state, best=None)
        if self.early_stop is None or (lowest and lowest.metric != self.early_stop.metric):
            self.state = replace(self.state, lowest=None, misses=0)

    def validated(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a validation."""
        self.state = replace(self.state, last_step=step)
        if self.keep_best is not None:
            best = _lower(self.state.best, self.keep_best, numbers, step)
            if best is not None:
                self._best_before = self.state.best
                self.state = replace(self.state, best=best)
        if self.early_stop is not None:
            lowest = _lower(self.state.lowest, self.early_stop.metric, numbers, step)
            if lowest is not None:
                self.state = replace(self.state, lowest=lowest, misses=0)
            else:
                self.state = replace(self.state, misses=self.state.misses + 1)

    def is_best(self, step: int) -> bool:
        """Return whether the best validation is that of this step."""
        return self.state.best is not None and self.state.best.step == step

    def not_saved(self, step: int) -> None:
        """Return to the best one before, if the checkpoint of the best step cannot be written."""
        if self.is_best(step):
            self.state = replace(self.state, best=self._best_before)

    @property
    def stop_reason(self) -> str:
        """Why the training ends here; empty if it does not."""
        early, state = self.early_stop, self.state
        if early is None or state.misses < early.patience:
            return ""
        lowest = state.lowest
        was = f"not below {lowest.value:.4f} (step {lowest.step})" if lowest else "never finite"
        return f"{early.metric} was {was} in {state.misses} validations"


def _lower(
    before: Lowest | None, metric: str, numbers: Mapping[str, float], step: int
) -> Lowest | None:
    """Return the new lowest value; None if it is not lower."""
    value = numbers.get(metric, math.nan)
    if not math.isfinite(value) or (before is not None and value >= before.value):
        return None
    return Lowest(metric, value, step)
