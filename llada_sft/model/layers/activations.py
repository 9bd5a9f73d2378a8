"""What is kept of a block for its backward pass, and what is computed again there.

none       everything that the backward pass needs is kept
selective  the results of matrix products and of attention are kept; norms, rotations and the
           product of SwiGLU, which cost little, are computed again
full       only the block's input is kept, and the whole block is computed again
offload    the same, and the block's input waits in the CPU's memory

A compiled block computes cheap things again by itself, where that is faster than reading them:
`none` and `selective` are the same there.

How many bytes that is follows from the sizes of the network (`kept_bytes.py`).
"""

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
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
    if checkpointing == "offload":
        return _run_with_input_on_host(block, *inputs)
    more: dict[str, Any] = {}
    if checkpointing == "selective":
        more["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *inputs, use_reentrant=False, **more)  # type: ignore[no-any-return]


def _run_with_input_on_host(
    block: nn.Module, x: Tensor, *others: Any
) -> tuple[Tensor, Tensor | None]:
    # What all blocks share stays where it is: it is not an argument of what is computed again.
    def run(x: Tensor) -> tuple[Tensor, Tensor | None]:
        return block(x, *others)  # type: ignore[no-any-return]

    # Of what is saved in this context, torch's checkpoint hands over the block's input alone.
    with saved_tensors_hooks(_to_host, _from_host):
        return checkpoint(run, x, use_reentrant=False)  # type: ignore[no-any-return]


def _to_host(x: Tensor) -> tuple[torch.device, Tensor]:
    """Copy a tensor to the CPU's memory, from CUDA next to what is computed meanwhile."""
    if x.device.type != "cuda":
        return x.device, x.clone()
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    stream = _copy_stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):
        host.copy_(x, non_blocking=True)
    # Its memory is not given away before it is copied.
    x.record_stream(stream)
    return x.device, host


def _from_host(kept: tuple[torch.device, Tensor]) -> Tensor:
    device, host = kept
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_copy_stream(device))
    return host.to(device, non_blocking=True)


@lru_cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator.name().partition(".")[0] in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
