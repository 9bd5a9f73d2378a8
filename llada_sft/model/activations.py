"""What is kept of a block for its backward pass, and what is computed again there.

none       everything that the backward pass needs is kept
selective  the results of matrix products and of attention are kept; norms, rotations and the
           product of SwiGLU, which cost little, are computed again
full       only the block's input is kept, and the whole block is computed again

A compiled block computes cheap things again by itself, where that is faster than reading them:
`none` and `selective` are the same there. It also saves its weights, as plain tensors. Under ZeRO-3
these are gathered for the forward pass alone, and saving them would keep the whole network in
memory: so only which weight it was is kept, and read when the weight is gathered again.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Checkpointing = Literal["none", "selective", "full"]

# By their names: not every build of torch, and not every machine, has all of them.
_KEPT = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
    }
)


def run_block(
    block: nn.Module, checkpointing: Checkpointing, compiled: bool, *inputs: Any
) -> Tensor:
    """Call a block; while gradients are recorded, keep of it what `checkpointing` says."""
    if not torch.is_grad_enabled():
        return block(*inputs)  # type: ignore[no-any-return]
    if checkpointing == "none" or (compiled and checkpointing == "selective"):
        with _weights_by_reference(block) if compiled else nullcontext():
            return block(*inputs)  # type: ignore[no-any-return]
    more: dict[str, Any] = {}
    if checkpointing == "selective":
        more["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *inputs, use_reentrant=False, **more)  # type: ignore[no-any-return]


class _Weight(NamedTuple):
    """A tensor in the memory of a weight; the offset is from the weight's own start."""

    weight: nn.Parameter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _weights_by_reference(block: nn.Module) -> saved_tensors_hooks:
    """Let the backward pass of what is called in this context read the block's weights anew."""

    def pack(tensor: Tensor) -> Tensor | _Weight:
        place = tensor.data_ptr()
        # Looked up each time: before ZeRO-3's hook has gathered them, they have no memory.
        for weight in block.parameters():
            if weight.data_ptr() <= place < weight.data_ptr() + weight.nbytes:
                offset = int(tensor.storage_offset() - weight.storage_offset())
                return _Weight(weight, tensor.size(), tensor.stride(), offset)
        return tensor

    def unpack(saved: Tensor | _Weight) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        weight, size, stride, offset = saved
        return weight.detach().as_strided(size, stride, weight.storage_offset() + offset)

    return saved_tensors_hooks(pack, unpack)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator.name().partition(".")[0] in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
