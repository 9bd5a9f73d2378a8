"""What the losses of the logged steps say: by noise level, how they vary, how many are of EOS.

The sums stay on the device, and are read once, with the loss, when a step is logged. What the host
knows itself is counted there.

- loss_level_k: the mean cross-entropy of the masked tokens of rows (with `objective.kind: block`
  of blocks) whose level, the share of the answer that is masked, is in the k-th of eight equal
  parts of [0, 1].
- loss_variance: the variance of the loss between the micro-batches of all ranks, each divided by
  its own number of examples, without the losses of routers and of confidence.
- eos_share: the share of EOS among the tokens under the masks.
- epoch_SOURCE: the epoch that a mixed source is in, on rank 0, from 0.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from llada_sft.data.rows.position import Positions
from llada_sft.diffusion.levels import SHOWN_BINS, bin_of
from llada_sft.training.masks.micro_batch import MicroBatch, moved

# Rows without a level: the hook has corrupted them.
_NO_LEVEL = SHOWN_BINS
_NUM_SUMS = SHOWN_BINS + 1 + 3
_EOS, _LOSSES, _SQUARES = range(SHOWN_BINS + 1, _NUM_SUMS)


def signal_columns(sources: Iterable[str]) -> list[str]:
    """Return the names of the numbers."""
    levels = [f"loss_level_{level + 1}" for level in range(SHOWN_BINS)]
    return [*levels, "loss_variance", "eos_share", *map(_epoch_of, sources)]


def _epoch_of(source: str) -> str:
    return f"epoch_{source}"


class StepSignals:
    """Sums of the steps since the last logged one.

    Args:
        eos_token_id: What ends an answer.
        sources: Names of the mixed sources.
    """

    def __init__(self, eos_token_id: int, sources: Sequence[str] = ()) -> None:
        self._eos, self._sources = eos_token_id, sources
        self._epochs: dict[str, int] = {}
        self._reset()

    def _reset(self) -> None:
        # On the device: the loss of each level, EOS tokens, and of the micro-batches' losses the
        # sum and the sum of squares.
        self._sums: Tensor | None = None
        # On the host: the masked tokens of each level, and micro-batches.
        self._tokens, self._micro_batches = np.zeros(SHOWN_BINS + 1), 0

    def add(self, batch: MicroBatch, examples_of_rank: float) -> None:
        """Add a micro-batch whose loss was just computed, without waiting for it.

        Args:
            batch: On the device.
            examples_of_rank: Examples of the global batch, divided by the number of ranks.
        """
        levels, terms = batch.levels, batch.terms
        assert levels is not None and terms is not None and terms.losses is not None
        if not levels.levels:
            # Empty: the rank has run short of rows.
            return
        self._micro_batches += 1
        losses, device = terms.losses, terms.losses.device
        if self._sums is None:
            self._sums = torch.zeros(_NUM_SUMS, dtype=torch.float64, device=device)
        if batch.is_masked:
            of_rows = [_bin(share) for share in levels.shares]
            bins = np.array(of_rows, np.int64)[levels.rows]
            self._tokens += np.bincount(bins, minlength=SHOWN_BINS + 1)
            self._sums.index_add_(0, moved(torch.from_numpy(bins), device), losses.double())
            self._sums[_EOS] += (batch.targets == self._eos).sum()
        loss = (terms.coefficients.double() * losses).sum()
        loss *= examples_of_rank / levels.num_examples
        self._sums[_LOSSES] += loss
        self._sums[_SQUARES] += loss * loss

    def see(self, positions: Positions) -> None:
        """Note the epochs of the files of a step."""
        if self._sources:
            self._epochs |= {name: position.epoch for name, position in positions.items()}

    def close(
        self, loss: Tensor, sum_of: Callable[[Tensor], Tensor], world_size: int
    ) -> dict[str, float]:
        """Return the numbers of all ranks since the last call; every rank must call this.

        Args:
            loss: The rank's part of the last step's loss, times the number of ranks.
            sum_of: Sums a tensor over the ranks.
            world_size: The number of ranks.
        """
        counts = torch.tensor([*self._tokens, self._micro_batches], dtype=torch.float64)
        sums = loss.new_zeros(_NUM_SUMS, dtype=torch.float64) if self._sums is None else self._sums
        mean_loss = loss.detach().double()[None] / world_size
        whole = torch.cat([mean_loss, sums, moved(counts, loss.device)])
        mean, *rest = sum_of(whole).tolist()
        of_all, tokens = np.array(rest[:_NUM_SUMS]), np.array(rest[_NUM_SUMS:-1])
        self._reset()
        found = {"loss": mean}
        found |= {
            f"loss_level_{level + 1}": float(of_all[level] / tokens[level])
            for level in range(SHOWN_BINS)
            if tokens[level]
        }
        if tokens.any():
            found["eos_share"] = float(of_all[_EOS] / tokens.sum())
        if rest[-1]:
            of_all[_LOSSES:] /= rest[-1]
            variance = float(of_all[_SQUARES] - of_all[_LOSSES] ** 2)
            # Of equal losses, rounding may make it negative.
            found["loss_variance"] = variance if math.isnan(variance) else max(0.0, variance)
        return found | self._epochs_of_sources()

    def _epochs_of_sources(self) -> dict[str, float]:
        """Return the epoch of the files of each source that are the farthest behind."""
        found: dict[str, float] = {}
        for source in self._sources:
            own = [epoch for name, epoch in self._epochs.items() if name.startswith(f"{source}/")]
            if own:
                found[_epoch_of(source)] = min(own)
        return found


def _bin(share: float) -> int:
    return _NO_LEVEL if math.isnan(share) else bin_of(share, SHOWN_BINS)
