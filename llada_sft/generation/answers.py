"""A batch of prompts -> its answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llada_sft.generation.blocks import Decoding, fill_blocks
from llada_sft.generation.candidates import Candidates
from llada_sft.generation.canvas import Canvas
from llada_sft.generation.official import fill_officially
from llada_sft.generation.predictor import Predictor
from llada_sft.generation.settings import SamplerSettings
from llada_sft.generation.verify import Verifier
from llada_sft.model.network import Network


@dataclass(frozen=True)
class Answer:
    """What was decoded for one prompt, what it cost, and where.

    Kernels round differently for other batches and on other devices: in fp32 and bf16 the last
    digit of a confidence may decide which of two tokens is written first.

    Attributes:
        ids: The tokens after the prompt, up to the first EOS and with it where the sampler stops
            there.
        num_passes: Forward passes that it took part in, one after another.
        num_rows: Rows that were computed for it in these passes: guidance doubles them, and
            `verify` computes several of an answer together.
        batch_size: Prompts that were answered together.
        device: Of the model.
    """

    ids: list[int]
    num_passes: int
    num_rows: int
    batch_size: int
    device: str


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
        ValueError: A prompt has a token that the model does not have; or neither the settings nor
            the model name a token that the sampler needs.
    """
    mask_token_id = _mask_token_id(model, settings)
    _require_known_tokens(model, prompts)
    if not prompts:
        return []
    canvas = Canvas(
        prompts,
        length=settings.start_length or settings.gen_length,
        max_length=settings.gen_length,
        block_length=settings.block_length,
        mask_token_id=mask_token_id,
        eos_token_id=_eos_token_id(model, settings),
        device=model.device,
    )
    predictor = Predictor(model, canvas, settings.cfg_scale)
    if settings.exact and settings.sampler == "official":
        fill_officially(predictor, canvas, settings)
    else:
        banned = [] if settings.exact else [mask_token_id, *_suppressed(model)]
        candidates = Candidates(settings, banned, len(prompts), model.device)
        decoding = Decoding(predictor, canvas, candidates, settings)
        if settings.sampler == "verify":
            Verifier(decoding).fill()
        else:
            fill_blocks(decoding)
    where = len(prompts), str(model.device)
    costs = zip(predictor.num_passes.tolist(), predictor.num_rows.tolist(), strict=True)
    return [Answer(ids, *cost, *where) for ids, cost in zip(canvas.answers(), costs, strict=True)]


def _mask_token_id(model: Network, settings: SamplerSettings) -> int:
    token: int | None = settings.mask_token_id
    token = model.config.mask_token_id if token is None else token
    if token is None:
        raise ValueError("mask_token_id must be given: the model's config.json does not name it")
    return token


def _eos_token_id(model: Network, settings: SamplerSettings) -> int | None:
    """Return the token that ends answers; None: nothing does."""
    if not settings.stops_at_eos:
        return None
    token: int | None = settings.eos_token_id
    token = model.config.eos_token_id if token is None else token
    if token is None and (settings.eos_early_stop or settings.start_length):
        raise ValueError("eos_token_id must be given: the model's config.json does not name it")
    return token


def _suppressed(model: Network) -> Sequence[int]:
    """Return the tokens that the model's config bans."""
    return tuple(getattr(model.config, "suppress_tokens", None) or ())


def _require_known_tokens(model: Network, prompts: Sequence[Sequence[int]]) -> None:
    number = model.architecture.num_embeddings
    for index, prompt in enumerate(prompts):
        for token in prompt:
            if not 0 <= token < number:
                raise ValueError(f"prompt {index}: tokens must be below {number}, got {token}")
