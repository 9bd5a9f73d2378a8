"""What is kept of a block for its backward pass, and what is computed again there.

none       everything that the backward pass needs is kept
selective  the results of matrix products and of attention are kept; norms, rotations and the
           product of SwiGLU, which cost little, are computed again
full       only the block's input is kept, and the whole block is computed again

A compiled block computes cheap things again by itself, where that is faster than reading them:
`none` and `selective` are the same there.

A number of bytes may decide (`within_budget`): what is kept follows from the sizes of the network.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llada_sft.model.families.architecture import Architecture

Checkpointing = Literal["none", "selective", "full"]

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


def kept_bytes(network: Architecture, element_bytes: int) -> dict[Checkpointing, int]:
    """Return the bytes that a block keeps for each token until its backward pass.

    They are those of a block that is not compiled, at its kernel of attention that keeps q, k, v,
    the result and one fp32 number for each head. A test counts them.

    Args:
        network: Its sizes.
        element_bytes: 2 in bf16, 4 in fp32.
    """
    width, hidden = network.width, network.mlp_size
    features = network.num_heads * network.head_dim
    kv_features = network.num_kv_heads * network.head_dim
    of_heads = 4 * network.num_heads
    # Besides: the inputs of both norms in fp32, and their roots.
    of_norms = 8 * width + 8
    if network.qk_norm:
        of_norms += (4 + element_bytes) * (features + kv_features)
        of_norms += 4 * (network.num_heads + network.num_kv_heads)
    inside = 2 * (features + kv_features)
    return {
        "none": element_bytes * (4 * width + inside + 4 * hidden) + of_norms + of_heads,
        # The block's input, the results of its 7 products and of attention.
        "selective": element_bytes * (3 * width + inside + 2 * hidden) + of_heads,
        "full": element_bytes * width,
    }


def within_budget(
    network: Architecture, num_tokens: int, element_bytes: int, budget: float, compiled: bool
) -> list[Checkpointing]:
    """Choose for each block what is kept, so that all blocks together keep `budget` bytes at most.

    As many blocks as possible are `selective` instead of `full`, which avoids the most arithmetic;
    if all are, as many as possible are `none`. If not even `full` fits, all blocks are `full`.

    Args:
        network: Its sizes.
        num_tokens: The most of a micro-batch.
        element_bytes: 2 in bf16, 4 in fp32.
        budget: Bytes of one rank.
        compiled: Whether blocks are compiled: their `selective` is `none`.
    """
    steps: list[Checkpointing] = ["none", "full"] if compiled else ["none", "selective", "full"]
    for more, less in pairwise(steps):
        for number in range(network.num_layers, -1, -1):
            kinds = [more] * number + [less] * (network.num_layers - number)
            if num_tokens * most_kept(network, kinds, element_bytes) <= budget:
                return kinds
    return ["full"] * network.num_layers


def most_kept(network: Architecture, kinds: Sequence[Checkpointing], element_bytes: int) -> int:
    """Return the most bytes that all blocks keep for each token.

    While a block is computed again, all of it is in memory once.
    """
    of_kind = kept_bytes(network, element_bytes)
    again = 0 if all(kind == "none" for kind in kinds) else of_kind["none"]
    return sum(of_kind[kind] for kind in kinds) + again
