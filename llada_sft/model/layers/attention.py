"""Attention with rotary positions, on torch's kernels; in blocks, blocks.py does it.

`Sequences` describes examples that share one row; they never look at each other. `plan_attention`
decides once for a forward pass how its blocks attend, and `attend` does it in each block: on CUDA
a kernel for sequences of variable length, torch's or flash-attn's, keeps examples apart; elsewhere
each example is a call of its own. No mask of L × L is ever made.

Shapes: B rows, H query heads, K key and value heads (H is a multiple of K), L positions,
D features of a head, R of them rotated, N sequences of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from llada_sft.model.layers.blocks import BlockPlan, attend_in_blocks
from llada_sft.model.layers.cache import CachedPlan
from llada_sft.model.layers.flex import FlexPlan, attend_flex


class FlashPlan(NamedTuple):
    """How the sequences of one row attend by flash-attn's kernel.

    Attributes:
        ends: int32 [N + 1], where each starts, and where the last one ends.
        longest: Tokens of the longest one.
    """

    ends: Tensor
    longest: int


# How the layers attend. A tensor: a mask that broadcasts to [B, 1, L, L], true where a position is
# seen. For one row of several sequences: where they start and the last one ends (int32 [N + 1])
# with the longest, for the kernel; or their lengths. In blocks: by chunks, or FlexAttention. None:
# everything is seen. Nothing more than tuples: DeepSpeed looks for tensors in what its modules are
# given. A cache is only for sampling.
Plan = (
    Tensor
    | BlockPlan
    | FlexPlan
    | FlashPlan
    | tuple[Tensor, int]
    | tuple[int, ...]
    | CachedPlan
    | None
)


class Sequences:
    """The sequences that fill one row together, with what the kernels need to know of them.

    It is made once, before the row is moved to the device: nothing of it is worked out in the
    forward pass. Not a tuple, so that DeepSpeed and Lightning leave it alone.

    Attributes:
        lengths: Tokens of each sequence, N of them.
        ends: int32 [N + 1], where each sequence starts, and where the last one ends.
        places: int64 [L], the position of each token in its sequence.
    """

    def __init__(
        self, lengths: Sequence[int], ends: Tensor | None = None, places: Tensor | None = None
    ) -> None:
        self.lengths = tuple(lengths)
        if ends is None:
            sums = torch.tensor(self.lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
            ends = F.pad(sums, (1, 0))
        if places is None:
            places = torch.cat([torch.arange(length) for length in self.lengths])
        self.ends, self.places = ends, places


def plan_attention(
    attention_mask: Tensor | None,
    sequences: Sequences | None,
    device: torch.device,
    dtype: torch.dtype,
    flash: bool = False,
) -> Plan:
    """Decide how to attend.

    Args:
        attention_mask: [B, L] bool, true at real tokens, or None where all are; None lets the
            fused kernels run.
        sequences: Those in the one row, or None where each has its own.
        device: Device of queries, keys and values.
        dtype: Dtype of queries, keys and values.
        flash: Whether flash-attn's kernel is used where torch's would be.
    """
    if sequences is None:
        return None if attention_mask is None else attention_mask[:, None, None, :]
    if has_varlen_kernel(device, dtype):
        ends, longest = sequences.ends.to(device), max(sequences.lengths)
        return FlashPlan(ends, longest) if flash else (ends, longest)
    return sequences.lengths


def has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel for sequences of variable length runs: torch's, or flash-attn's."""
    half = dtype in (torch.bfloat16, torch.float16)
    # Flash attention needs Ampere or newer.
    return device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0)


def rotary_table(positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Return the cosines and sines of positions [..., L], [2, ..., L, 1, R] fp32.

    Computed again in each forward pass rather than kept in a buffer: the official checkpoints have
    none, and a buffer would be cast to bf16 together with the weights.

    Source: Su et al., RoFormer (arXiv 2104.09864), eq. 15.
    """
    steps = torch.arange(0, rotary_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (steps / rotary_dim)
    angles = positions.float()[..., None] * frequencies  # [..., L, R/2]
    angles = torch.cat([angles, angles], dim=-1)  # [..., L, R]
    return torch.stack([angles.cos(), angles.sin()])[..., None, :]


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn queries or keys by their positions, in fp32 whatever their dtype.

    The halves of the first R features of a head are rotated against each other (feature i with
    i + R/2), as in GPT-NeoX and unlike the paper's neighbouring pairs; the other D - R stay.

    Args:
        x: [B, L, H, D] floating.
        rotary: [2, L, 1, R] or [2, B, L, 1, R] fp32, from `rotary_table`.
    """
    cos, sin = rotary
    rotary_dim = cos.shape[-1]
    full = x[..., :rotary_dim].float()
    first, second = full.chunk(2, dim=-1)
    rotated: Tensor = full * cos + torch.cat([-second, first], dim=-1) * sin
    if rotary_dim == x.shape[-1]:
        return rotated.to(x.dtype)
    return torch.cat([rotated.to(x.dtype), x[..., rotary_dim:]], dim=-1)


def rotate_both(q: Tensor, k: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
    """Turn queries [B, L, H, D] and keys [B, L, K, D] by their positions."""
    return rotate(q, rotary), rotate(k, rotary)


def attend(q: Tensor, k: Tensor, v: Tensor, how: Plan) -> Tensor:
    """Let every position look at what it sees: if not in blocks, every real one of its example.

    Args:
        q: [B, L, H, D] floating.
        k: [B, L, K, D] floating.
        v: [B, L, K, D] floating.
        how: What `plan_attention`, `plan_blocks`, `plan_flex` or a cache returned.

    Returns:
        [B, L, H, D]. What comes out at padding is of no meaning.
    """
    if isinstance(how, CachedPlan):
        k, v = how.layer.update(k, v, how.places)  # [B, C, K, D]
        return attend(q, k, v, how.how)
    if not isinstance(how, tuple):
        return _attend_in_rows(q, k, v, how)
    if isinstance(how, BlockPlan):
        return attend_in_blocks(q, k, v, how)
    if isinstance(how, FlexPlan):
        return attend_flex(q, k, v, how)
    if isinstance(how, FlashPlan):
        return _attend_by_flash(q, k, v, how)
    if isinstance(how[0], Tensor):
        ends, longest = how
        return _attend_in_sequences(q, k, v, ends, int(longest))
    lengths = [int(length) for length in how]
    each = zip(*(torch.split(x, lengths, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([_attend_in_rows(*qkv) for qkv in each], dim=1)


def _attend_in_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H or K, L, D]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return mixed.transpose(1, 2)


def _attend_by_flash(q: Tensor, k: Tensor, v: Tensor, plan: FlashPlan) -> Tensor:
    # Only where the package is installed.
    from llada_sft.model.kernels.flash import flash_attend

    return flash_attend(q[0], k[0], v[0], plan.ends, plan.longest)[None]


def _attend_in_sequences(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        # Not every version of the kernel groups heads by itself.
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    mixed = varlen_attn(q[0], k[0], v[0], ends, ends, longest, longest)  # [L, H, D]
    assert isinstance(mixed, Tensor)
    return mixed[None]
