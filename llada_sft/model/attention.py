"""Bidirectional attention with rotary positions, on torch's kernels.

`plan_attention` decides once for a forward pass how its blocks attend; `attend` does it in each
block.
Examples that share one row never look at each other: on CUDA the kernel for sequences of variable
length keeps them apart, elsewhere a block-diagonal mask.

Shapes: B rows, H query heads, K key and value heads (H is a multiple of K), L positions,
D features of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

# How the blocks attend. A tensor: a mask that broadcasts to [B, 1, L, L], true where a position is
# seen. A pair, for one row: where its sequences start and the last one ends (int32), and the
# longest. None: everything is seen. Nothing more than tuples: DeepSpeed looks for tensors in what
# its modules are given.
Plan = Tensor | tuple[Tensor, int] | None


def token_positions(
    length: int, sequence_lengths: Sequence[int] | None, device: torch.device
) -> Tensor:
    """Return the position of each token in its sequence, [L] int64."""
    lengths = [length] if sequence_lengths is None else sequence_lengths
    return torch.cat([torch.arange(length) for length in lengths]).to(device)


def plan_attention(
    attention_mask: Tensor | None,
    sequence_lengths: Sequence[int] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """Decide how to attend.

    Args:
        attention_mask: [B, L] bool, true at real tokens, or None where all are; None lets the
            fused kernels run.
        sequence_lengths: Tokens of the sequences in the one row, or None where each has its own.
        device: Device of queries, keys and values.
        dtype: Dtype of queries, keys and values.
    """
    if sequence_lengths is None:
        return None if attention_mask is None else attention_mask[:, None, None, :]
    lengths = torch.tensor(sequence_lengths, dtype=torch.int32)
    if _has_varlen_kernel(device, dtype):
        ends = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return ends.to(device), max(sequence_lengths)
    numbers = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)  # [L]
    return (numbers[:, None] == numbers)[None, None]


def _has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    half = dtype in (torch.bfloat16, torch.float16)
    # Flash attention needs Ampere or newer.
    return device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Return the cosines and sines of positions [L], [2, L, D] fp32.

    Computed again in each forward pass rather than kept in a buffer: the official checkpoints have
    none, and a buffer would be cast to bf16 together with the weights.

    Source: Su et al., RoFormer (arXiv 2104.09864), eq. 15.
    """
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = torch.outer(positions.float(), 1.0 / theta ** (steps / head_dim))  # [L, D/2]
    angles = torch.cat([angles, angles], dim=-1)  # [L, D]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn queries or keys by their positions, in fp32 whatever their dtype.

    The halves of a head are rotated against each other (feature i with i + D/2), as in GPT-NeoX
    and unlike the paper's neighbouring pairs.

    Args:
        x: [B, H, L, D] floating.
        rotary: [2, L, D] fp32, from `rotary_table`.
    """
    cos, sin = rotary
    full = x.float()
    first, second = full.chunk(2, dim=-1)
    rotated: Tensor = full * cos + torch.cat([-second, first], dim=-1) * sin
    return rotated.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, how: Plan) -> Tensor:
    """Let every position look at every real one of its example, in both directions.

    Args:
        q: [B, H, L, D] floating.
        k: [B, K, L, D] floating.
        v: [B, K, L, D] floating.
        how: What `plan_attention` returned.

    Returns:
        [B, H, L, D]. What comes out at padding is of no meaning.
    """
    if isinstance(how, tuple):
        return _attend_in_sequences(q, k, v, *how)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=how, enable_gqa=grouped)


def _attend_in_sequences(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        # Not every version of the kernel groups heads by itself.
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [L, H, D]
    mixed = varlen_attn(q, k, v, ends, ends, longest, longest)
    assert isinstance(mixed, Tensor)
    return mixed.transpose(0, 1)[None]
