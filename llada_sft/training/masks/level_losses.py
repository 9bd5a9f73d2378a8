"""`objective.t_density: importance`: the losses of trained steps, by noise level, on all ranks.

1. After each forward pass the losses of its masked positions are copied to host memory. When the
   step is trained, they are summed up by example and by level: integers.
2. Every rank reports the sums of step k - 2 when the ranks agree on step k (`Consensus`): step k is
   agreed on while step k - 1 waits for its training, one step ahead.
3. What the ranks' sums make together decides how the levels of step k are drawn.

So a checkpoint after step k holds the statistics that step k was drawn with, and the sums of steps
k - 1 and k, which no later statistics contain yet. A run that resumes from it, on any number of
ranks, starts as if it had trained these steps: it draws the same levels, bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llada_sft.diffusion.levels import NUM_BINS, LevelStatistics, level_sums

NO_SUMS = (0,) * (2 * NUM_BINS)
# Steps between a step and the first one whose levels depend on its losses.
_DELAY = 2


class BatchLevels:
    """Which draws, and which levels, the losses of a micro-batch belong to.

    A draw is of an example, or of a block of one (masks/parts.py).

    Not a dataclass, as `MicroBatch`: Lightning leaves it alone.

    Attributes:
        examples: int64 [M], the number of the draw of each masked position; twins have one.
        coefficients: fp64 [M], what the cross-entropy of each is multiplied by.
        levels: Of each draw.
        scales: What the loss of each draw is multiplied by, so that it is what the draw adds to the
            global loss with uniform levels, times the number of draws; NaN: it does not count.
        rows: int64 [M], the number of the part of each masked position; those of twins are two.
        shares: Of each part, the share of the answer that is masked; NaN where nothing was drawn.
        num_examples: Examples of the micro-batch; as many as draws by default.
    """

    def __init__(
        self,
        examples: NDArray[np.int64],
        coefficients: NDArray[np.float64],
        levels: Sequence[float],
        scales: Sequence[float],
        rows: NDArray[np.int64],
        shares: Sequence[float],
        num_examples: int | None = None,
    ) -> None:
        self.num_examples = len(levels) if num_examples is None else num_examples
        self.rows, self.shares = rows, tuple(shares)
        self.examples, self.coefficients = examples, coefficients
        self.levels, self.scales = tuple(levels), tuple(scales)

    def sums(self, losses: NDArray[np.float32]) -> tuple[int, ...]:
        """Return the `level_sums` of the examples; `losses`: [M], the cross-entropies."""
        if not self.levels:
            return NO_SUMS
        weighted = self.coefficients * losses
        of_examples = np.bincount(self.examples, weighted, len(self.levels)) * self.scales
        return level_sums(list(zip(self.levels, of_examples.tolist(), strict=True)))


@dataclass(frozen=True)
class LevelState:
    """What a checkpoint keeps.

    Attributes:
        statistics: What the levels of its step were drawn with.
        pending: The sums of all ranks of the steps that these statistics do not contain, from the
            oldest on.
    """

    statistics: LevelStatistics = LevelStatistics()  # noqa: RUF009 (frozen)
    pending: tuple[tuple[int, ...], ...] = (NO_SUMS,) * _DELAY

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.statistics.counts,
            "squares": self.statistics.squares,
            "pending": self.pending,
        }

    @staticmethod
    def from_json(state: Mapping[str, Any] | None) -> "LevelState":
        """Return the state of a checkpoint; None: of one that has none."""
        if state is None:
            return LevelState()
        statistics = LevelStatistics(tuple(state["counts"]), tuple(state["squares"]))
        return LevelState(statistics, tuple(tuple(sums) for sums in state["pending"]))

    @staticmethod
    def together(ranks: Sequence["LevelState | None"]) -> "LevelState | None":
        """Add up what the ranks' steps say; the statistics are the same on all of them."""
        states = [state for state in ranks if state is not None]
        if not states:
            return None
        pending = [
            tuple(map(sum, zip(*of_ranks, strict=True)))
            for of_ranks in zip(*(state.pending for state in states), strict=True)
        ]
        return LevelState(states[0].statistics, tuple(pending))


class LevelLosses:
    """Collects the losses of a rank's steps, and draws levels by those of all ranks.

    Args:
        first_step: Steps that were made before.
        state: The checkpoint's.
        rank: The pending sums of all ranks are those of rank 0 after a resume.

    Attributes:
        statistics: What the levels of the last agreed step are drawn with.
    """

    def __init__(self, first_step: int, state: LevelState, rank: int) -> None:
        self.statistics = state.statistics
        # The rank's sums, by the number of the step.
        self._sums: dict[int, tuple[int, ...]] = {}
        if rank == 0:
            first = first_step - len(state.pending)
            self._sums = {first + place: sums for place, sums in enumerate(state.pending)}
        self._copies: list[tuple[BatchLevels, Tensor]] = []
        self._copied: torch.cuda.Event | None = None

    def report(self, step: int) -> tuple[int, ...]:
        """Return what this rank reports when the ranks agree on a step, counted from 0."""
        return self._sums.get(step - _DELAY, NO_SUMS)

    def agreed(self, sums: Sequence[int]) -> LevelStatistics:
        """Take what all ranks have reported; return what the step is drawn with."""
        self.statistics = self.statistics.after_step(sums)
        return self.statistics

    def add(self, levels: BatchLevels, losses: Tensor) -> None:
        """Note the losses [M] of a micro-batch that were computed, without waiting for them."""
        if (device := losses.device).type == "cuda":
            copy = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            losses = copy.copy_(losses, non_blocking=True)
            self._copied = torch.cuda.current_stream(device).record_event()
        self._copies.append((levels, losses))

    def step_ended(self, step: int) -> None:
        """Sum up what was noted of a step, counted from 0, once the device has trained it."""
        if self._copied is not None:
            # It was before the backward pass.
            self._copied.synchronize()
        of_batches = [levels.sums(losses.numpy()) for levels, losses in self._copies]
        self._copies.clear()
        self._sums[step] = tuple(map(sum, zip(NO_SUMS, *of_batches, strict=True)))
        # A checkpoint of this step takes this one and the one before.
        self._sums.pop(step - _DELAY, None)

    def state(self, drawn_with: LevelStatistics, step: int) -> LevelState:
        """Return this rank's part of what a checkpoint after `step` steps keeps.

        Args:
            drawn_with: The statistics that the last of these steps was drawn with.
            step: Steps that were made.
        """
        steps = range(step - _DELAY, step)
        return LevelState(drawn_with, tuple(self._sums.get(each, NO_SUMS) for each in steps))
