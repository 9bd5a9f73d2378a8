"""Attention in blocks on CUDA, by FlexAttention's compiled kernel.

The kernel computes tiles of 128 queries and 128 keys. It is given which tiles have a pair that sees
each other, and of which tiles all pairs do; in the others it asks position by position. A query
sees at most two spans of keys: its own noisy block, and clean positions from the start of its
document. All follows from the ends of these spans, on the device, once for a forward pass.

The kernel's module imports torch's compiler: it is imported when it is first used.

Shapes: B rows, H query heads, K key and value heads, L positions of one half of a row, S halves (2
if noisy and clean, else 1), D features of a head, Q = S·L positions, U tiles.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_sft.model.layers.blocks import Blocks

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_TILE = 128


class FlexPlan(NamedTuple):
    """How the positions of a pass attend. A tuple: DeepSpeed looks for tensors in tuples only."""

    mask: "BlockMask"


def has_flex(device: torch.device, head_dim: int) -> bool:
    """Whether the kernel can be compiled: for a GPU of NVIDIA's Ampere or newer, and D >= 16."""
    if device.type != "cuda" or torch.version.hip is not None or head_dim < 16:
        return False
    from torch.utils._triton import has_triton

    return torch.cuda.get_device_capability(device) >= (8, 0) and has_triton()


def plan_flex(
    blocks: Blocks, lengths: Sequence[int], real: Tensor | None, device: torch.device
) -> FlexPlan:
    """Find out which tiles the kernel computes.

    Args:
        blocks: How documents attend.
        lengths: Of the documents that follow one another in a half of a row; one where each row is
            a document.
        real: [B, L] bool, true at real tokens; None: all are.
        device: Device of queries, keys and values.
    """
    from torch.nn.attention.flex_attention import BlockMask

    spans = seen_spans(blocks, lengths).to(device, non_blocking=True)  # [2, 2, Q]
    # One index each: the kernel's compiler takes nothing else.
    own_start, clean_start, own_end, clean_end = spans.flatten(0, 1)
    shown = None if real is None else real.repeat(1, blocks.halves)  # [B, Q]

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (own_start[query] <= key) & (key < own_end[query])
        seen: Tensor = own | (clean_start[query] <= key) & (key < clean_end[query])
        return seen if shown is None else seen & shown[row, key]

    some, every = _tiles(spans)
    if shown is not None:
        # Any tile may have padding.
        every = torch.zeros_like(every)
    positions = spans.shape[-1]
    return FlexPlan(
        BlockMask.from_kv_blocks(
            *_listed(some & ~every),
            *_listed(every),
            BLOCK_SIZE=_TILE,
            mask_mod=sees,
            seq_lengths=(positions, positions),
        )
    )


def attend_flex(q: Tensor, k: Tensor, v: Tensor, plan: FlexPlan) -> Tensor:
    """Let every position look at its own block and at the clean blocks before it.

    Args:
        q: [B, Q, H, D] floating.
        k: [B, Q, K, D] floating.
        v: [B, Q, K, D] floating.
        plan: What `plan_flex` returned.

    Returns:
        [B, Q, H, D]. What comes out at padding is of no meaning.
    """
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    kernel = _kernel(compiled=q.device.type == "cuda")
    mixed: Tensor = kernel(q, k, v, block_mask=plan.mask, enable_gqa=grouped)
    return mixed.transpose(1, 2)


@lru_cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel) if compiled else kernel


def seen_spans(blocks: Blocks, lengths: Sequence[int]) -> Tensor:
    """Return the two spans of keys that each position sees: int32 [starts and ends, 2, Q].

    The first one is the noisy block of a noisy position, else empty; the second one is clean.
    """
    sizes = torch.tensor(lengths)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # where its document starts, [L]
    place = torch.arange(len(first)) - first
    block = first + place // blocks.length * blocks.length  # where its block starts
    end = torch.minimum(block + blocks.length, first + sizes.repeat_interleave(sizes))
    none = torch.zeros_like(first)
    if not blocks.doubled:
        spans = torch.stack([torch.stack([none, first]), torch.stack([none, end])])
        return spans.int()
    half = len(first)
    own = torch.stack([torch.cat([block, none]), torch.cat([end, none])])  # [2, Q]
    clean = torch.stack([torch.cat([first, first]), torch.cat([block, end])]) + half
    return torch.stack([own, clean], dim=1).int()


def _tiles(spans: Tensor) -> tuple[Tensor, Tensor]:
    """Return in which tiles [U of queries, U of keys] some pair, and every pair, is seen."""
    positions = spans.shape[-1]
    starts, ends = spans[..., None]  # [2, Q, 1]
    first = torch.arange(0, positions, _TILE, device=spans.device)  # [U]
    last = (first + _TILE).clamp(max=positions)
    some = ((starts < last) & (ends > first) & (starts < ends)).any(0)  # [Q, U]
    every = ((starts <= first) & (ends >= last)).any(0)
    missing = (0, 0, 0, -positions % _TILE)
    some, every = F.pad(some, missing, value=False), F.pad(every, missing, value=True)
    shape = (len(first), _TILE, len(first))
    return some.view(shape).any(1), every.view(shape).all(1)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tiles of keys there are for each tile of queries, and which come first."""
    numbers = tiles.sum(-1, dtype=torch.int32)
    order = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int()
    return numbers[None, None], order[None, None].contiguous()
