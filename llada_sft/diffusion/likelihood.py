"""Likelihood bounds by Monte Carlo, with noise that is the same every time.

A validation loss is comparable between two steps, and between two runs, only if both see the same
masks. Here the noise of an example depends on its key and the number of the draw alone, and the
draws of one example are stratified over the noise levels. `strata.py` has those of a likelihood.

Shapes: L positions of one example; D draws.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_sft.diffusion.generate import MaskPredictor
from llada_sft.diffusion.noise import Noise, draw_noise, independent
from llada_sft.diffusion.strata import combine, draw_strata
from llada_sft.keys import hashed


def validation_noise(response_mask: Tensor, key: int, draw: int, num_draws: int) -> Noise:
    """Return draw number `draw` of an example: exact masking at one of `num_draws` noise levels.

    Args:
        response_mask: [L] bool, true at the tokens of the response.
        key: The example's key, the same at every validation.
        draw: In [0, num_draws).
        num_draws: Number of strata of [0, 1).
    """
    u = (draw + independent(key)) / num_draws
    return draw_noise(response_mask, u, hashed("validation", key, draw), "exact")


@torch.no_grad()
def log_likelihood(
    model: MaskPredictor,
    input_ids: Tensor,
    response_mask: Tensor,
    num_draws: int,
    mask_token_id: int,
    key: int = 0,
    batch_size: int = 8,
) -> float:
    """Estimate a lower bound of log p(response | prompt), in nats, by stratified draws.

        -E_l [ (Lr / l) Σ_masked CE ],  l ~ U{1..Lr} tokens masked

    `evaluation.scoring.log_likelihoods` does this for many answers together.

    Args:
        model: The mask predictor, in evaluation mode.
        input_ids: [L] int64, on the model's device.
        response_mask: [L] bool, true at the tokens of the response.
        num_draws: At most so many masks are drawn; the paper uses 128.
        mask_token_id: From the model's config.
        key: Keys the noise.
        batch_size: Masks of one forward pass.

    Source: LLaDA (arXiv 2502.09992), eq. 6 and algorithm 3.
    """
    response = response_mask.nonzero().squeeze(1).cpu()
    strata = draw_strata(len(response), num_draws, key)
    draws = [mask for stratum in strata for mask in stratum.masks]
    losses: list[float] = []
    for start in range(0, len(draws), batch_size):
        batch = draws[start : start + batch_size]
        masked = torch.zeros(len(batch), len(input_ids), dtype=torch.bool)  # [D, L]
        masked[:, response] = torch.stack(batch)
        masked = masked.to(input_ids.device)
        clean = input_ids.expand(len(batch), -1)  # [D, L]
        logits = model(clean.masked_fill(masked, mask_token_id)).logits  # [D, L, V]
        rows = masked.nonzero()[:, 0]
        losses += summed_cross_entropies(logits[masked], clean[masked], rows, len(batch)).tolist()
    return combine(len(response), strata, losses).value


def summed_cross_entropies(logits: Tensor, targets: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Return Σ_masked CE of each row, [num_rows] fp64.

    Args:
        logits: [M, V] floating, at the masked positions.
        targets: [M] int64, the tokens there.
        rows: [M] int64, the row of each position.
        num_rows: Number of rows.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none").double()  # [M]
    return losses.new_zeros(num_rows).index_add_(0, rows, losses)
