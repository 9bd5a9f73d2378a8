"""A clean micro-batch, and the noise of its parts -> what the network and the loss need.

Shapes: B rows of a micro-batch, L positions, M masked positions of the micro-batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llada_sft.data.steps.collate import UnmaskedBatch
from llada_sft.diffusion.noise import Noise
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.head import LossTerms
from llada_sft.training.masks.edits import Edits
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.masks.parts import Parts, whole
from llada_sft.training.masks.void_end import hidden_ends


def noisy_micro_batch(
    batch: UnmaskedBatch,
    noises: Sequence[Noise],
    divisors: Sequence[float],
    mask_token_id: int,
    confidence: Sequence[float] | None = None,
    void_weight: float = 0.0,
    parts: Parts | None = None,
    edits: Edits | None = None,
) -> MicroBatch:
    """Apply one noise to each part of a micro-batch.

    Args:
        batch: The clean micro-batch; with no examples it becomes one of weight zero.
        noises: One for each part.
        divisors: What the weighted loss of each part is divided by.
        mask_token_id: Stands at the masked positions.
        confidence: What the confidence loss of each part is multiplied by; None: it has none.
        void_weight: What the loss of void tokens is multiplied by (void_end.py).
        parts: The parts; None: each example is one.
        edits: What else is replaced (edits.py); None: nothing.
    """
    if parts is None:
        parts = Parts(batch.spans, [whole(noise) for noise in noises])
    tokens = _Tokens(batch, mask_token_id)
    tokens.apply(parts, noises, divisors, confidence)
    tokens.hide_ends(void_weight)
    if edits is not None:
        tokens.replace(edits)
    tokens.weigh()
    positions = tokens.learned()
    return MicroBatch(
        noisy_ids=tokens.noisy.view(batch.input_ids.shape),
        attention_mask=_attention_mask(batch),
        positions=positions,
        targets=tokens.clean[positions],
        coefficients=tokens.coefficients[positions].float(),
        sequences=Sequences(batch.lengths) if batch.packed else None,
        rows=tuple((key.file, key.line) for key in dict.fromkeys(batch.keys)),
        terms=None if confidence is None else tokens.terms(positions, parts),
        real=_real_tokens(batch),
        replaced=None if edits is None else edits.replaced[positions],
        is_masked=bool(tokens.masked.any()),
    )


class _Tokens:
    """The tokens of a micro-batch while noise, ends, edits and weights are applied, in this order.

    Attributes:
        clean: int64 [B · L].
        noisy: int64 [B · L], what the network sees.
        masked: bool [B · L], the tokens that are predicted.
        coefficients: fp64 [B · L], what the cross-entropy of each is multiplied by.
    """

    def __init__(self, batch: UnmaskedBatch, mask_token_id: int) -> None:
        self._batch, self._mask_token_id = batch, mask_token_id
        self.clean = torch.from_numpy(batch.input_ids).flatten()
        seen = batch.input_ids if batch.noisy_ids is None else batch.noisy_ids
        self.noisy = torch.from_numpy(seen).flatten().clone()
        self.masked = torch.zeros(self.clean.shape, dtype=torch.bool)
        self.coefficients = torch.zeros(self.clean.shape, dtype=torch.float64)
        # What the confidence loss of each is multiplied by, and where it has no part.
        self._confidence = torch.zeros(self.clean.shape, dtype=torch.float64)
        self._plain = torch.zeros(self.clean.shape, dtype=torch.bool)
        # What a token that is always learned counts: its part's importance over its divisor.
        self._certain = torch.zeros(self.clean.shape, dtype=torch.float64)

    def apply(
        self,
        parts: Parts,
        noises: Sequence[Noise],
        divisors: Sequence[float],
        confidence: Sequence[float] | None,
    ) -> None:
        """Mask what the noise masks; tokens that the hook has corrupted stay as they are."""
        corrupted = self._batch.corrupted or (False,) * len(self._batch.keys)
        for number, (span, noise, by) in enumerate(zip(parts.spans, noises, divisors, strict=True)):
            self.masked[span] = noise.masked
            self.coefficients[span] = noise.weight / by
            self._certain[span] = noise.importance / by
            self._confidence[span] = 0.0 if confidence is None else confidence[number]
            if not corrupted[parts.rows[number]]:
                self.noisy[span].masked_fill_(noise.masked, self._mask_token_id)

    def hide_ends(self, void_weight: float) -> None:
        """Mask the EOS and void tokens that are always masked."""
        ends = hidden_ends(self._batch, self._certain, void_weight)
        if ends is None:
            return
        self.masked |= ends.masked
        self.noisy.masked_fill_(ends.masked, self._mask_token_id)
        self.coefficients = torch.where(ends.masked, ends.coefficients, self.coefficients)
        self._plain |= ends.void

    def replace(self, edits: Edits) -> None:
        """Put wrong tokens among those that are not masked."""
        self.masked |= edits.replaced
        self.noisy[edits.replaced] = edits.tokens
        certain = edits.weight * self._certain
        self.coefficients = torch.where(edits.replaced, certain, self.coefficients)
        self._plain |= edits.replaced

    def weigh(self) -> None:
        """Multiply by the weights of the data."""
        self._confidence.masked_fill_(self._plain, 0.0)
        if self._batch.loss_weights is not None:
            weights = torch.from_numpy(self._batch.loss_weights).flatten()
            self.coefficients *= weights
            self._confidence *= weights

    def learned(self) -> Tensor:
        """Return the positions at which the head runs, int64 [M].

        It must run equally often on every rank: of a micro-batch without masked tokens it is one
        position, with coefficient zero.
        """
        positions = self.masked.nonzero().squeeze(1)
        if len(positions) == 0:
            positions = torch.zeros(1, dtype=torch.int64)
            self.coefficients.zero_()
            self._confidence.zero_()
        return positions

    def terms(self, positions: Tensor, parts: Parts) -> LossTerms:
        """Return the coefficients of both losses, and the part that each position is of."""
        rows, num_rows = parts.at(positions), max(1, len(parts))
        if self._plain.any():
            # In a row of their own: predicted right, they do not count among an answer's tokens.
            rows, num_rows = rows.masked_fill(self._plain[positions], num_rows), num_rows + 1
        coefficients = self.coefficients[positions].float()
        return LossTerms(coefficients, rows, num_rows, self._confidence[positions].float())


def _attention_mask(batch: UnmaskedBatch) -> Tensor | None:
    return None if batch.attention_mask is None else torch.from_numpy(batch.attention_mask)


def _real_tokens(batch: UnmaskedBatch) -> Tensor | None:
    """Return which positions hold a token, bool [B · L]; None: all do."""
    rows, width = batch.input_ids.shape
    if batch.num_tokens == rows * width:
        return None
    lengths = torch.zeros(rows, dtype=torch.int64)
    lengths[: len(batch.lengths)] = torch.tensor(batch.lengths, dtype=torch.int64)
    return (torch.arange(width) < lengths[:, None]).flatten()
