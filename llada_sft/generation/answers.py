"""A batch of prompts -> its answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from llada_sft.generation.blocks import Decoding, fill_blocks
from llada_sft.generation.candidates import Candidates
from llada_sft.generation.canvas import Canvas
from llada_sft.generation.llada2 import BlockCausalDecoder
from llada_sft.generation.official import fill_officially
from llada_sft.generation.predictor import Forward, Predictor
from llada_sft.generation.settings import SamplerSettings
from llada_sft.generation.verify import Verifier
from llada_sft.model.layers.blocks import Blocks
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
    batch_size: int = field(compare=False)
    device: str = field(compare=False)


@torch.no_grad()
def generate(
    model: Network,
    prompts: Sequence[Sequence[int]],
    settings: SamplerSettings,
    watch: Callable[[list[list[int]]], None] | None = None,
    forward: Forward | None = None,
) -> list[Answer]:
    """Answer prompts, all of them in one batch; each as if it were alone.

    Args:
        model: In evaluation mode.
        prompts: Token ids; their lengths may differ.
        settings: For all of them.
        watch: Called before each forward pass with the answers as they stand, mask tokens included.
        forward: What computes the passes; None: the model.

    Returns:
        The answers in the order of the prompts.

    Raises:
        ValueError: A prompt has a token that the model does not have; neither the settings nor the
            model name a token that the sampler needs; or the network attends in another way.
    """
    mismatch = settings.mismatch(model.architecture.decodes_in_blocks)
    if mismatch is not None:
        raise ValueError(mismatch)
    mask_token_id = _mask_token_id(model, settings)
    never, last = _never(model, settings), _last(model, settings)
    _require_known_ids(model, settings)
    _require_known_tokens(model, prompts)
    if not prompts:
        return []
    canvas = Canvas(
        prompts,
        lengths=[_canvas_length(len(prompt), settings) for prompt in prompts],
        max_length=settings.gen_length,
        block_length=settings.block_length,
        mask_token_id=mask_token_id,
        eos_token_id=_eos_token_id(model, settings),
        device=model.device,
    )

    def show() -> None:
        if watch is not None:
            watch(canvas.answers())

    blocks = Blocks(settings.block_length) if settings.in_blocks else None
    predictor = Predictor(model, canvas, settings.cfg_scale, show, blocks, never, forward)
    if settings.exact and settings.sampler == "official":
        fill_officially(predictor, canvas, settings, _suppressed(model), last)
    else:
        banned = [*_suppressed(model), *([] if settings.exact else [mask_token_id])]
        candidates = Candidates(settings, banned, len(prompts), model.device, last)
        decoding = Decoding(predictor, canvas, candidates, settings)
        _fill(decoding)
    where = len(prompts), str(model.device)
    costs = zip(predictor.num_passes.tolist(), predictor.num_rows.tolist(), strict=True)
    return [Answer(ids, *cost, *where) for ids, cost in zip(canvas.answers(), costs, strict=True)]


def _fill(decoding: Decoding) -> None:
    """Fill the canvas with a sampler other than the official one."""
    settings = decoding.settings
    if settings.sampler == "verify":
        Verifier(decoding).fill()
    elif settings.in_blocks:
        BlockCausalDecoder(decoding).fill()
    else:
        fill_blocks(decoding)


def _canvas_length(prompt_length: int, settings: SamplerSettings) -> int:
    """Return the mask tokens after a prompt; in blocks, the last of them is a whole one."""
    if not settings.in_blocks:
        return settings.start_length or settings.gen_length
    block = settings.block_length
    return -(-(prompt_length + settings.gen_length) // block) * block - prompt_length


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
    if settings.needs_eos:
        return _required_eos(model, settings)
    token: int | None = model.config.eos_token_id
    return token if settings.eos_token_id is None else settings.eos_token_id


def _required_eos(model: Network, settings: SamplerSettings) -> int:
    token: int | None = settings.eos_token_id
    token = model.config.eos_token_id if token is None else token
    if token is None:
        raise ValueError("eos_token_id must be given: the model's config.json does not name it")
    return token


def _never(model: Network, settings: SamplerSettings) -> list[int]:
    """Return the tokens whose logits are -inf."""
    return [_required_eos(model, settings)] if settings.logits_eos_inf else []


def _last(model: Network, settings: SamplerSettings) -> list[int]:
    """Return the tokens of no confidence."""
    if not settings.confidence_eos_eot_inf:
        return []
    end_of_turn = [] if settings.eot_token_id is None else [settings.eot_token_id]
    return [_required_eos(model, settings), *end_of_turn]


def _suppressed(model: Network) -> Sequence[int]:
    """Return the tokens that the model's config bans."""
    suppressed: Sequence[int] = model.config.suppress_tokens
    return suppressed


def _require_known_ids(model: Network, settings: SamplerSettings) -> None:
    number = model.architecture.num_embeddings
    for name in ("mask_token_id", "eos_token_id", "eot_token_id"):
        token = getattr(settings, name)
        if token is not None and not 0 <= token < number:
            raise ValueError(f"{name} must be from 0 to {number - 1}, got {token}")


def _require_known_tokens(model: Network, prompts: Sequence[Sequence[int]]) -> None:
    number = model.architecture.num_embeddings
    for index, prompt in enumerate(prompts):
        for token in prompt:
            if not 0 <= token < number:
                raise ValueError(f"prompt {index}: tokens must be below {number}, got {token}")
