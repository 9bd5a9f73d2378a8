"""`data.end: void`: the EOS of an answer and the void tokens after it are always masked.

A sampler writes no void token. So the network sees none, neither here nor there, and learns from
their places alone where nothing follows. A sampler does write the EOS: a network that has not
learned it before takes it for noise then (docs/recipes.md). The noise is drawn over the L tokens of
the answer before its EOS. With its weights w (L / l, or 1 / p) and K void tokens, the loss of an
example is

    1 / (L + 1) · (Σ_masked w · CE + CE_EOS)  +  λ / K · Σ_void CE

with λ = `objective.void_weight`; without void tokens it has no second term. `normalization: token`
counts the EOS as a response token, and multiplies both terms by L + 1. EOS and void tokens have the
`loss_weights` of the answer's last token.

- The first term estimates, without bias, (L + 1)⁻¹ times the bound of the answer given that its EOS
  is hidden, plus the mean loss of the EOS over the noise levels.
- With `t_density: importance`, a draw's whole loss is divided by its density: what hides EOS and
  void tokens least is as much a matter of the level as the answer is. The losses by level are those
  of whole examples.
- The confidence loss is the mean over the answer and its EOS: a void token is never written.
- Validation has the first term alone.

Source: VoidPadding (arXiv 2606.17999). Its published code masks void tokens as often as those of
the answer, without a term of their own: each counts as a token of the answer does.

Shapes: B rows of a micro-batch, L positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.data.steps.collate import UnmaskedBatch


@dataclass(frozen=True)
class HiddenEnds:
    """The always masked positions of a micro-batch, and what their losses are multiplied by.

    Attributes:
        masked: bool [B · L], the EOS and the void tokens.
        void: bool [B · L], the void tokens.
        coefficients: fp64 [B · L], 0 elsewhere.
    """

    masked: Tensor
    void: Tensor
    coefficients: Tensor


def hidden_ends(batch: UnmaskedBatch, certain: Tensor, void_weight: float) -> HiddenEnds | None:
    """Return the hidden ends of a micro-batch; None if it has none.

    Args:
        batch: The clean micro-batch.
        certain: fp64 [B · L], the importance of the draw at each token, over what the weighted loss
            of its example is divided by.
        void_weight: λ.
    """
    if not batch.hidden:
        return None
    size = batch.input_ids.size
    ends = HiddenEnds(
        masked=torch.zeros(size, dtype=torch.bool),
        void=torch.zeros(size, dtype=torch.bool),
        coefficients=torch.zeros(size, dtype=torch.float64),
    )
    learned = batch.response_mask.reshape(-1)
    for number, span in enumerate(batch.spans):
        num_void = batch.hidden[number] - 1
        if num_void < 0:
            continue
        stop = span.start + batch.lengths[number]
        eos, void = stop - num_void - 1, slice(stop - num_void, stop)
        ends.masked[eos:stop] = True
        ends.void[void] = True
        ends.coefficients[eos] = certain[eos]
        if num_void:
            # The divisor is a multiple of L + 1, or the tokens of the global batch.
            length = int(learned[span].sum())
            ends.coefficients[void] = void_weight * length / num_void * certain[void]
    return ends


def always_masked(batch: UnmaskedBatch) -> list[Tensor]:
    """Return the EOS and void tokens of each example that are always masked, [S] bool."""
    masks = [torch.zeros(span.stop - span.start, dtype=torch.bool) for span in batch.spans]
    for number, hidden in enumerate(batch.hidden):
        length = batch.lengths[number]
        masks[number][length - hidden : length] = True
    return masks


def answer_masks(batch: UnmaskedBatch) -> list[Tensor]:
    """Return what the noise of each example is drawn over, [S] bool: its response, but for EOS that
    are always masked.
    """
    flat = torch.from_numpy(batch.response_mask).flatten()
    masks = [flat[span] for span in batch.spans]
    for number, hidden in enumerate(batch.hidden):
        if hidden:
            masks[number] = masks[number].clone()
            masks[number][batch.lengths[number] - hidden :] = False
    return masks
