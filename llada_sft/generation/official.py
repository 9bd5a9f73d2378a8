"""The official sampler's tokens, also for prompts of different lengths.

All `gen_length` tokens are given, and the mask token is not banned, as in the official code. The
head of the network runs at candidates alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llada_sft.diffusion.generate import uncover_blocks
from llada_sft.generation.canvas import Canvas
from llada_sft.generation.predictor import Predictor
from llada_sft.generation.settings import SamplerSettings


def fill_officially(
    predictor: Predictor,
    canvas: Canvas,
    settings: SamplerSettings,
    suppress_tokens: Sequence[int] = (),
    last_tokens: Sequence[int] = (),
) -> None:
    """Fill all answers in place, in as many passes as there are steps.

    Without a seed, draws follow torch's global generator.

    Args:
        predictor: The network.
        canvas: With whole answers.
        settings: Those of the official sampler.
        suppress_tokens: Never written.
        last_tokens: Written last.
    """
    rows = torch.arange(len(canvas.ids), device=canvas.ids.device)
    generator = None
    if settings.seed is not None:
        generator = torch.Generator(canvas.ids.device).manual_seed(settings.seed)

    def predict(ids: Tensor, wanted: Tensor) -> Tensor:
        is_wanted = torch.zeros_like(ids, dtype=torch.bool)
        is_wanted.view(-1)[wanted] = True
        return predictor.logits(ids, rows, is_wanted)

    uncover_blocks(
        predict,
        canvas.ids,
        canvas.starts,
        num_blocks=settings.num_blocks,
        block_length=settings.block_length,
        steps_per_block=settings.steps_per_block,
        temperature=settings.temperature,
        remasking=settings.remasking,
        mask_token_id=canvas.mask_token_id,
        generator=generator,
        suppress_tokens=suppress_tokens,
        last_tokens=last_tokens,
    )
