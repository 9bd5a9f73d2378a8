"""The official sampler's tokens, also for prompts of different lengths.

All `gen_length` tokens are given, and the mask token is not banned, as in the official code. The
head of the network runs at candidates alone.
"""

import torch
from torch import Tensor

from llada_sft.diffusion.generate import guided, uncover_blocks
from llada_sft.generation.canvas import Canvas
from llada_sft.generation.settings import SamplerSettings
from llada_sft.model.network import Network


def fill_officially(
    model: Network, canvas: Canvas, settings: SamplerSettings, generator: torch.Generator | None
) -> tuple[list[int], list[int]]:
    """Fill all answers in place.

    Args:
        model: In evaluation mode.
        canvas: With whole answers.
        settings: Those of the official sampler.
        generator: None: torch's global one.

    Returns:
        For each prompt, the forward passes and the rows in them.
    """
    real = canvas.real()

    def predict(ids: Tensor, wanted: Tensor) -> Tensor:
        mask = None if real is None else real.repeat(len(ids) // len(real), 1)
        logits: Tensor = model(ids, attention_mask=mask, positions=wanted).logits
        return logits

    uncover_blocks(
        guided(predict, canvas.is_prompt, settings.cfg_scale, canvas.mask_token_id),
        canvas.ids,
        canvas.starts,
        num_blocks=settings.num_blocks,
        block_length=settings.block_length,
        steps_per_block=settings.steps_per_block,
        temperature=settings.temperature,
        remasking=settings.remasking,
        mask_token_id=canvas.mask_token_id,
        generator=generator,
    )
    num_passes = settings.num_blocks * settings.steps_per_block
    num_rows = num_passes * (2 if settings.cfg_scale else 1)
    return [num_passes] * len(canvas.ids), [num_rows] * len(canvas.ids)
