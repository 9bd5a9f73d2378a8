"""FlashAttention of the package flash-attn, for the sequences of a packed row.

Torch has a kernel of the same kind. This one takes fewer heads of keys and values than of queries
as they are, where ours are repeated for torch's.

Source: Dao, FlashAttention-2 (arXiv 2307.08691).

Shapes: H query heads, K key and value heads, L positions, D features of a head, N sequences.
"""

from flash_attn import flash_attn_varlen_func
from torch import Tensor


def flash_attend(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    """Let every position look at all of its sequence.

    Args:
        q: [L, H, D] bf16 or fp16, on CUDA; D is at most 256.
        k: [L, K, D] of the same dtype.
        v: [L, K, D] of the same dtype.
        ends: int32 [N + 1], where each sequence starts, and where the last one ends.
        longest: Tokens of the longest one.

    Returns:
        [L, H, D].
    """
    mixed: Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
    )
    return mixed
