"""Likelihood bounds by Monte Carlo, with noise that is the same every time.

A validation loss is comparable between two steps, and between two runs, only if both see the same
masks. Here the noise of an example depends on its key and the number of the draw alone, and the
draws of one example are stratified over the noise levels.

Shapes: L positions of one example; D draws.
"""

import torch
from torch import Tensor

from llada_sft.diffusion.generate import MaskPredictor
from llada_sft.diffusion.noise import Noise, draw_noise, independent
from llada_sft.diffusion.objective import diffusion_loss
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
    """Estimate a lower bound of log p(response | prompt), in nats.

        -E_l [ (Lr / l) Σ_masked CE ],  l ~ U{1..Lr} tokens masked

    Args:
        model: The mask predictor, in evaluation mode.
        input_ids: [L] int64, on the model's device.
        response_mask: [L] bool, true at the tokens of the response.
        num_draws: Monte Carlo samples; the paper uses 128.
        mask_token_id: From the model's config.
        key: Keys the noise.
        batch_size: Samples of one forward pass.

    Source: LLaDA (arXiv 2502.09992), eq. 6 and algorithm 3.
    """
    draws = [validation_noise(response_mask.cpu(), key, i, num_draws) for i in range(num_draws)]
    total = 0.0
    for start in range(0, num_draws, batch_size):
        batch = draws[start : start + batch_size]
        masked = torch.stack([noise.masked for noise in batch]).to(input_ids.device)  # [D, L]
        weights = input_ids.new_tensor([noise.weight for noise in batch], dtype=torch.float32)
        clean = input_ids.expand(len(batch), -1)  # [D, L]
        logits = model(clean.masked_fill(masked, mask_token_id)).logits  # [D, L, V]
        total += diffusion_loss(logits, clean, masked, weights[:, None], 1, num_draws).item()
    return -total
