"""Attention in blocks as its definition says it: with a dense mask, for the tests to compare."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llada_sft.model.layers.blocks import Blocks


def dense_mask(blocks: Blocks, lengths: Sequence[int]) -> Tensor:
    """Return what each position of a pack sees, [S·P, S·P] bool, position by position.

    Args:
        blocks: How the documents attend.
        lengths: Of the documents that follow one another in each half.
    """
    block = torch.cat([torch.arange(length) // blocks.length for length in lengths])
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    same = document[:, None] == document
    query, key = block[:, None], block
    block_causal = same & (key <= query)
    if not blocks.doubled:
        return block_causal
    of_noisy = torch.cat([same & (key == query), same & (key < query)], dim=1)
    of_clean = torch.cat([torch.zeros_like(same), block_causal], dim=1)
    return torch.cat([of_noisy, of_clean])


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend by the formula.

    Args:
        q: [B, N, H, D] floating.
        k: [B, N, K, D] floating.
        v: [B, N, K, D] floating.
        mask: [N, N] or [B, 1, N, N] bool.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v)
