"""Bidirectional attention with rotary positions, on torch's scaled-dot-product kernels.

Shapes: B examples, H query heads, K key and value heads (H is a multiple of K), L positions,
D features of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_table(length: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Return the cosines and sines of all positions, [2, L, D] fp32.

    Computed anew in each forward pass rather than kept in a buffer: the official checkpoints have
    none, and a buffer would be cast to bf16 together with the weights.

    Source: Su et al., RoFormer (arXiv 2104.09864), eq. 15.
    """
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / theta**exponents)  # [L, D/2]
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


def attend(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Let every position look at every real one, in both directions.

    Args:
        q: [B, H, L, D] floating.
        k: [B, K, L, D] floating.
        v: [B, K, L, D] floating.
        attention_mask: [B, L] bool, true at real tokens, or None where all are; None lets the
            fused kernels run.

    Returns:
        [B, H, L, D]. What comes out at padding is of no meaning.
    """
    mask = None if attention_mask is None else attention_mask[:, None, None, :]
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
