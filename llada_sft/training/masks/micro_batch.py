"""What the network and the loss need of a micro-batch.

Shapes: B rows of a micro-batch, L positions, M masked positions of the micro-batch.
"""

import torch
from torch import Tensor

from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.head import LossTerms
from llada_sft.training.masks.level_losses import BatchLevels


class MicroBatch:
    """What the network and the loss need.

    Not a dataclass and not a collection, on purpose: Lightning walks into those and converts every
    floating tensor to bf16, the coefficients of the loss among them.

    Attributes:
        noisy_ids: int64 [B, L], the mask token at masked positions.
        attention_mask: bool [B, L], or None where every token is real.
        positions: int64 [M], flat indices into B * L of the masked positions; never empty.
        targets: int64 [M], the tokens under the masks.
        coefficients: fp32 [M], what the cross-entropy of each is multiplied by.
        sequences: The examples of a packed row, else None.
        rows: File and line of each example, of twins once.
        terms: The coefficients, and what else the loss takes and gives; None in a validation.
        levels: Which levels the losses belong to; None in a validation.
        real: bool [B * L], the tokens of the examples, without what was added to their rows, be it
            learned or not; None where nothing was added.
        blocks: How positions attend in blocks; None: all of an example see each other. With blocks
            `noisy_ids` is [B, 2 L], the noisy rows and the clean ones (masks/two_halves.py), and so
            is `real`; `positions` are flat indices into B * 2 L.
        replaced: bool [M], which of the positions are not masked, but hold another token
            (masks/edits.py); None: the objective has none.
        is_masked: Whether anything is; else `positions` is one that counts for nothing.
    """

    def __init__(
        self,
        noisy_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        targets: Tensor,
        coefficients: Tensor,
        sequences: Sequences | None = None,
        rows: tuple[tuple[str, int], ...] = (),
        terms: LossTerms | None = None,
        levels: BatchLevels | None = None,
        real: Tensor | None = None,
        blocks: Blocks | None = None,
        replaced: Tensor | None = None,
        is_masked: bool = True,
    ) -> None:
        self.blocks, self.replaced, self.is_masked = blocks, replaced, is_masked
        self.noisy_ids, self.attention_mask = noisy_ids, attention_mask
        self.sequences, self.rows, self.real = sequences, rows, real
        self.terms, self.levels = terms, levels
        self.positions, self.targets, self.coefficients = positions, targets, coefficients

    def to(self, device: torch.device) -> "MicroBatch":
        sequences = self.sequences
        if sequences is not None:
            ends, places = moved(sequences.ends, device), moved(sequences.places, device)
            sequences = Sequences(sequences.lengths, ends, places)
        coefficients, terms = moved(self.coefficients, device), self.terms
        if terms is not None:
            confidence = terms.confidence
            terms = LossTerms(
                coefficients,
                rows=moved(terms.rows, device),
                num_rows=terms.num_rows,
                confidence=None if confidence is None else moved(confidence, device),
            )
        return MicroBatch(
            noisy_ids=moved(self.noisy_ids, device),
            attention_mask=(
                None if self.attention_mask is None else moved(self.attention_mask, device)
            ),
            positions=moved(self.positions, device),
            targets=moved(self.targets, device),
            coefficients=coefficients,
            sequences=sequences,
            rows=self.rows,
            terms=terms,
            levels=self.levels,
            real=None if self.real is None else moved(self.real, device),
            blocks=self.blocks,
            replaced=None if self.replaced is None else moved(self.replaced, device),
            is_masked=self.is_masked,
        )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for what the device has still to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # From memory that is not pinned, the copy would wait. Torch keeps the pinned memory until
        # it is read.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
