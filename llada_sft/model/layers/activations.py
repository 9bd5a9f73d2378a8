"""What is kept of a block for its backward pass, and what is computed again there.

none       everything that the backward pass needs is kept
selective  the results of matrix products and of attention are kept; norms, rotations and the
           product of SwiGLU, which cost little, are computed again
full       only the block's input is kept, and the whole block is computed again

A compiled block computes cheap things again by itself, where that is faster than reading them:
`none` and `selective` are the same there.

How many bytes that is follows from the sizes of the network (`kept_bytes.py`).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llada_sft.model.layers.kept_bytes import Checkpointing

# By their names: not every build of torch, and not every machine, has all of them.
_KEPT = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_grouped_mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
        # Of flash-attn 2.7.1 or newer.
        "flash_attn::_flash_attn_varlen_forward",
    }
)


def run_block(
    block: nn.Module, checkpointing: Checkpointing, compiled: bool, *inputs: Any
) -> tuple[Tensor, Tensor | None]:
    """Call a block; while gradients are recorded, keep of it what `checkpointing` says."""
    kept = checkpointing == "none" or (compiled and checkpointing == "selective")
    if kept or not torch.is_grad_enabled():
        return block(*inputs)  # type: ignore[no-any-return]
    more: dict[str, Any] = {}
    if checkpointing == "selective":
        more["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *inputs, use_reentrant=False, **more)  # type: ignore[no-any-return]


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator.name().partition(".")[0] in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
