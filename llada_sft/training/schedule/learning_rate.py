"""The learning rate, from how much of the training is done when a step is made.

The length of a training is the steps that are made, and those that the remaining rows will make.
The ranks agree on the latter at every step (`Report.steps_left`): it is 1 exactly at the last step,
whatever was estimated before. With k steps made and r steps left, including this one:

    position   += (total - position) / r         how far the training is, in steps of this batch
    descent    += (1 - descent) / r              once the rate has started to fall
    rate        = lr (k + 1) / warmup_steps                      while k < warmup_steps
                = lr + (final_lr - lr) · shape(descent)          after that

`shape` is the identity, or half a cosine. With `cosine` the rate starts to fall at the end of the
warm-up, otherwise where position ≥ total · (1 - decay_fraction), but not before the warm-up ends.

If the estimate is exact, r = total - k at every step and so position = k: this is
`learning_rate(config, k, total)`. If it is not, the rate follows the rows that are done: position
and descent reach their ends with the last row, and neither ever decreases. A resume on another
number of ranks or with another batch keeps the descent and the ratio position / total: the rate
does not jump, and the rest of the descent is divided among the steps that are left.
"""

import math
from dataclasses import dataclass, replace

from llada_sft.config.sections.optim import OptimConfig


@dataclass(frozen=True)
class Point:
    """How far the training is on its schedule; a checkpoint keeps it.

    Attributes:
        position, total: Steps that are made, and steps of the whole training: both in steps of the
            present batch, as estimated when that batch was first used.
        descent: How far the rate is from `lr` (0) to `final_lr` (1).
    """

    position: float
    total: float
    descent: float = 0.0

    def after_step(self, config: OptimConfig, step: int, steps_left: int) -> "Point":
        """Return the point after a step; `steps_left` includes that step."""
        if steps_left <= 1:
            # Rows may end before the rate starts to fall; some schedules never fall.
            has_fall = config.schedule == "cosine" or _fall_begins(config, self.total) < self.total
            falls = self.descent > 0 or (has_fall and step >= config.warmup_steps)
            return Point(self.total, self.total, 1.0 if falls else 0.0)
        descent = self.descent
        if descent > 0 or _falls(config, step, self):
            descent += (1 - descent) / steps_left
        share = (self.total - self.position) / steps_left
        return Point(self.position + share, self.total, descent)

    def continued(self, steps_left: int) -> "Point":
        """Continue with another number of steps left, from the same share of the training."""
        return self._in_steps(steps_left, steps_left)

    def lengthened(
        self, config: OptimConfig, step: int, planned_left: float, steps_left: int
    ) -> "Point":
        """Continue as if the training had been planned with its present length from the first step.

        Args:
            config: The optim section.
            step: Steps that were made.
            planned_left: Steps of the present batch that were left before the length was changed.
            steps_left: Steps that are left now.
        """
        if self.position >= self.total:
            longer = Point(step, step + steps_left)
        else:
            longer = self._in_steps(planned_left, steps_left)
        return replace(longer, descent=descent_at(config, longer.position, longer.total))

    def _in_steps(self, planned_left: float, steps_left: int) -> "Point":
        """Express the position in steps of which `planned_left` would have been left."""
        if self.position >= self.total:
            return Point(self.total, self.total + steps_left, self.descent)
        position = self.position * (planned_left / (self.total - self.position))
        return Point(position, position + steps_left, self.descent)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step if the number of all steps is known.

    Linear warm-up from 0, then constant and linear to `final_lr` over the last `decay_fraction`
    of all steps (LLaDA's), or half a cosine. Past `total_steps` it stays at `final_lr`.

    Args:
        config: The optim section.
        step: The step about to be made, from 0.
        total_steps: Steps of the whole training.

    Source: arXiv 2502.09992, appendix B.2 (SFT).
    """
    return rate_of(config, step, descent_at(config, step + 1, total_steps))


def rate_of(config: OptimConfig, step: int, descent: float) -> float:
    """Return the learning rate of a step, from the descent after that step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if descent >= 1:
        return config.final_lr
    if config.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * descent))
        return config.final_lr + (config.lr - config.final_lr) * height
    return config.lr + (config.final_lr - config.lr) * descent


def descent_at(config: OptimConfig, position: float, total: float) -> float:
    """Return how far the rate has fallen at a position of a training of known length."""
    start = _start(config, total)
    return min(1.0, max(0.0, (position - start) / max(1, total - start)))


def _start(config: OptimConfig, total: float) -> float:
    if config.schedule == "cosine":
        return config.warmup_steps
    return max(config.warmup_steps, _fall_begins(config, total))


def _fall_begins(config: OptimConfig, total: float) -> int:
    return math.ceil(total * (1 - config.decay_fraction))


def _falls(config: OptimConfig, step: int, point: Point) -> bool:
    """Return whether the rate falls with this step."""
    if step < config.warmup_steps:
        return False
    return config.schedule == "cosine" or point.position >= _fall_begins(config, point.total)
