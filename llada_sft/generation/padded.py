"""`model.generate(...)`, in transformers' manner: padded tensors in, padded tensors out.

Shapes: B prompts, P positions of the longest prompt, T tokens of the longest answer.
"""

from typing import Any

import torch
from torch import Tensor

from llada_sft.choices import SAMPLERS
from llada_sft.generation.answers import generate
from llada_sft.generation.settings import SamplerSettings
from llada_sft.model.network import Network


def generate_padded(
    model: Network,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    max_new_tokens: int,
    **settings: Any,
) -> Tensor:
    """Complete prompts.

    Args:
        model: In evaluation mode.
        input_ids: [B, P] int64.
        attention_mask: [B, P], 0 at padding, left or right; None: there is none.
        max_new_tokens: `gen_length`; blocks have as many tokens if `block_length` does not divide
            it and was not given, unless the network attends in blocks.
        settings: Others of `SamplerSettings`.

    Returns:
        [B, P + T] int64: each row of `input_ids` as it is, then its answer, then padding.

    Raises:
        ValueError: A setting cannot be, or does not exist.
    """
    length = SamplerSettings.block_length
    sampler = settings.get("sampler", SamplerSettings.sampler)
    is_free = sampler in SAMPLERS and not SAMPLERS[sampler].in_blocks
    if is_free and "block_length" not in settings and max_new_tokens % length:
        settings["block_length"] = max_new_tokens
    try:
        chosen = SamplerSettings(gen_length=max_new_tokens, **settings)
    except TypeError as error:
        raise ValueError(str(error).replace("SamplerSettings.__init__()", "generate")) from None
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if real.shape != input_ids.shape:
        shapes = f"{list(input_ids.shape)}, got {list(real.shape)}"
        raise ValueError(f"attention_mask must have the shape of input_ids, {shapes}")
    prompts = [row[kept].tolist() for row, kept in zip(input_ids, real.bool(), strict=True)]
    answers = [answer.ids for answer in generate(model, prompts, chosen)]
    pad = model.config.pad_token_id
    pad = model.config.eos_token_id if pad is None else pad
    longest = max(map(len, answers), default=0)
    rows = [ids + [pad] * (longest - len(ids)) for ids in answers]
    written = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids, written.view(len(answers), longest)], dim=1)
