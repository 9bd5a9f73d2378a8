"""A batch of prompts -> its answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llada_sft.generation.canvas import Canvas
from llada_sft.generation.official import fill_officially
from llada_sft.generation.settings import SamplerSettings
from llada_sft.model.network import Network


@dataclass(frozen=True)
class Answer:
    """What was decoded for one prompt, and what it cost.

    Attributes:
        ids: The tokens after the prompt, up to the first EOS and with it where the sampler stops
            there.
        num_passes: Forward passes that it took part in, one after another.
        num_rows: Rows that were computed for it in these passes: guidance doubles them, and
            `verify` computes several of an answer together.
    """

    ids: list[int]
    num_passes: int
    num_rows: int


@torch.no_grad()
def generate(
    model: Network, prompts: Sequence[Sequence[int]], settings: SamplerSettings
) -> list[Answer]:
    """Answer prompts, all of them in one batch; each as if it were alone.

    Args:
        model: In evaluation mode.
        prompts: Token ids; their lengths may differ.
        settings: For all of them.

    Returns:
        The answers in the order of the prompts.

    Raises:
        ValueError: A prompt has a token that the model does not have; or the model names no mask
            token.
    """
    if settings.sampler != "official" or not settings.exact:
        raise ValueError(f"sampler {settings.sampler!r}: only 'official', without eos_early_stop")
    mask_token_id = _require_tokens(model, prompts, settings)
    if not prompts:
        return []
    canvas = Canvas(
        prompts,
        length=settings.gen_length,
        max_length=settings.gen_length,
        mask_token_id=mask_token_id,
        pad_token_id=int(mask_token_id == 0),
        device=model.device,
    )
    generator = None
    if settings.seed is not None:
        generator = torch.Generator(model.device).manual_seed(settings.seed)
    passes, rows = fill_officially(model, canvas, settings, generator)
    return [
        Answer(ids, num_passes, num_rows)
        for ids, num_passes, num_rows in zip(canvas.answers(), passes, rows, strict=True)
    ]


def _require_tokens(
    model: Network, prompts: Sequence[Sequence[int]], settings: SamplerSettings
) -> int:
    """Return the mask token, once all tokens of the prompts are known to the model."""
    mask_token_id, number = settings.mask_token_id, model.architecture.num_embeddings
    if mask_token_id is None:
        mask_token_id = model.config.mask_token_id
    if mask_token_id is None:
        raise ValueError("mask_token_id must be given: the model's config.json does not name it")
    for index, prompt in enumerate(prompts):
        for token in prompt:
            if not 0 <= token < number:
                raise ValueError(f"prompt {index}: tokens must be below {number}, got {token}")
    return int(mask_token_id)
