"""A loss that is NaN or infinite: no rank makes the step, and the rows are named.

1. Each rank checks the sum of its own losses, on the device, before its last backward pass; if the
   sum is not finite, `poison_gradient` makes the gradient NaN.
2. DeepSpeed sums the gradients of all ranks, as at every step, and so the NaN reaches all of them.
3. Before DeepSpeed changes a weight, it computes the global gradient norm, waits for it, and skips
   a step whose norm is not finite: it drops the gradients, leaves weights and optimizer unchanged,
   and advances its counters. All ranks have the same norm, so they make the same decision.

This adds neither a collective nor a wait for the device to a step. A finite loss whose gradient is
not finite is handled the same way.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from llada_sft.errors import NonFiniteError
from llada_sft.training.consensus import Consensus
from llada_sft.training.masks.micro_batch import MicroBatch

# The most rows that a message names; the journal has all of them.
_SHOWN_ROWS = 8
_DO = "look at the rows, and lower optim.lr"


def poison_gradient(micro_loss: Tensor, loss: Tensor) -> Tensor:
    """Make the gradient of a micro-batch NaN if the loss of the step is not finite.

    A loss can be infinite while its gradient is finite: if the model gives a token probability 0.

    Args:
        micro_loss: The loss of the last micro-batch.
        loss: The sum of the rank's losses over the step, that micro-batch included.
    """
    return micro_loss * torch.where(loss.isfinite(), 1.0, math.nan)


@dataclass(frozen=True)
class SkippedSteps:
    """Counts of skipped steps; a checkpoint keeps them.

    Attributes:
        total: Skipped steps of the whole run.
        last: The number of the last skipped step.
        in_a_row: How many steps in a row were skipped, up to `last`.
    """

    total: int = 0
    last: int = 0
    in_a_row: int = 0

    def and_step(self, step: int) -> "SkippedSteps":
        in_a_row = self.in_a_row + 1 if step == self.last + 1 else 1
        return SkippedSteps(self.total + 1, step, in_a_row)


class NonFiniteSteps:
    """Reports skipped steps: each ends the run, or is recorded in the journal.

    Args:
        policy: `train.on_nonfinite`.
        consensus: The agreement of the ranks.
        rank: Which one this is.
        note: Adds an entry to the journal.
        max_skipped: `train.max_skipped_steps`.
        skipped: Steps that were skipped before this attempt.

    Attributes:
        skipped: All skipped steps of the run.
    """

    def __init__(
        self,
        policy: Literal["stop", "skip"],
        consensus: Consensus,
        rank: int,
        note: Callable[[Mapping[str, object]], None],
        max_skipped: int = 10,
        skipped: SkippedSteps = SkippedSteps(),
    ) -> None:
        self._max_skipped, self.skipped = max_skipped, skipped
        self._policy, self._consensus = policy, consensus
        self._rank, self._note = rank, note

    def report_skipped_step(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        losses: Sequence[Tensor],
        is_last: bool = False,
    ) -> None:
        """Report which rows made a step fail; every rank must call this for the same steps.

        Args:
            step: The skipped step, counted from 1.
            batches: This rank's micro-batches.
            losses: The loss of each.
            is_last: Whether it was the last step of the training.

        Raises:
            NonFiniteError: The run must stop; raised on every rank.
        """
        self.skipped = self.skipped.and_step(step)
        where, rows = self._rows(batches, losses)
        if self._rank == 0:
            self._note({"event": "nonfinite", "step": step, "detail": where, "rows": rows})
        named = ", ".join(rows[:_SHOWN_ROWS])
        more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
        problem = f"step {step}: {where} is NaN or infinite: rows {named}{more}"
        if self._policy == "stop":
            raise NonFiniteError(
                f"{problem}; look at them, lower optim.lr, "
                "or skip such steps with train.on_nonfinite=skip"
            )
        if self.skipped.in_a_row >= self._max_skipped:
            count = self.skipped.in_a_row
            steps = "1 step was" if count == 1 else f"{count} steps in a row were"
            raise NonFiniteError(
                f"{problem}; {steps} skipped (train.max_skipped_steps: {self._max_skipped}); {_DO}"
            )
        if is_last and self.skipped.total == step:
            raise NonFiniteError(f"{problem}; every step of the run was skipped; {_DO}")
        if self._rank == 0:
            print(f"{problem}; the step is skipped", flush=True)

    def _rows(
        self, batches: Sequence[MicroBatch], losses: Sequence[Tensor]
    ) -> tuple[str, list[str]]:
        """Return the rows of all ranks whose loss is not finite, or else all rows of the step."""
        finite = torch.stack(list(losses)).isfinite().tolist()
        every = [f"{file}:{line}" for batch in batches for file, line in batch.rows]
        bad = [
            f"{file}:{line}"
            for batch, is_finite in zip(batches, finite, strict=True)
            if not is_finite
            for file, line in batch.rows
        ]
        ranks: Any = self._consensus.gather((all(finite), bad, every))
        if all(finite for finite, _, _ in ranks):
            return "the gradient", [row for _, _, rows in ranks for row in rows]
        return "the loss", [row for _, rows, _ in ranks for row in rows]
