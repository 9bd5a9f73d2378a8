"""How many bytes the blocks of a network keep for the backward pass; without torch.

They are those of blocks that are not compiled, at the kernel of attention that keeps q, k, v, the
result and one fp32 number for each head. Tests count them.

Shapes: C width of the residual stream, F width inside an MLP or an expert, E experts, k of them for
each token.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

from llada_sft.model.families.architecture import Architecture, Experts

# What is kept of a block, and what is computed again: see activations.py.
Checkpointing = Literal["none", "selective", "full", "offload"]
# Of an index, and of a number.
_INT64, _FP32 = 8, 4


def host_bytes(network: Architecture, kinds: Sequence[Checkpointing], element_bytes: int) -> int:
    """Return the bytes that all blocks keep for each token in the CPU's memory."""
    return element_bytes * network.width * kinds.count("offload")


def kept_bytes(
    network: Architecture, element_bytes: int, layer: int = 0
) -> dict[Checkpointing, int]:
    """Return the bytes that a block keeps on the device for each token until its backward pass.

    Args:
        network: Its sizes.
        element_bytes: 2 in bf16, 4 in fp32.
        layer: The number of the block; those with experts keep more than others.
    """
    width = network.width
    features = network.num_heads * network.head_dim
    kv_features = network.num_kv_heads * network.head_dim
    of_heads = 4 * network.num_heads
    # Besides: the inputs of both norms in fp32, and their roots.
    of_norms = 8 * width + 8
    if network.qk_norm:
        of_norms += (4 + element_bytes) * (features + kv_features)
        of_norms += 4 * (network.num_heads + network.num_kv_heads)
    inside = 2 * (features + kv_features)
    of_fused = 0
    if network.names.of_block.qkv and not (network.qk_norm and element_bytes == _FP32):
        # Values are a part of one tensor, and keep it. In fp32, the norms of queries and keys do.
        of_fused = element_bytes * (features + kv_features)
    # The products of gate and up, SiLU of one and the product of both.
    hidden = element_bytes * network.mlp_size
    of_mlp: dict[Checkpointing, int] = {"none": 4 * hidden, "selective": 2 * hidden, "full": 0}
    if network.has_experts(layer):
        of_mlp = _of_experts(network, element_bytes)
    return {
        "none": element_bytes * (4 * width + inside)
        + of_norms
        + of_heads
        + of_fused
        + of_mlp["none"],
        # The block's input, the results of its products and of attention.
        "selective": element_bytes * (3 * width + inside) + of_heads + of_mlp["selective"],
        "full": element_bytes * width + of_mlp["full"],
        "offload": of_mlp["full"],
    }


def _of_experts(network: Architecture, element_bytes: int) -> dict[Checkpointing, int]:
    """Return what experts, their router and a shared expert keep, instead of an MLP.

    The choice is kept in any case, and so are the router's logits, for its losses.
    """
    experts, width = cast(Experts, network.experts), network.width
    chosen, size = experts.per_token, experts.size
    shared = element_bytes * (experts.shared_size or 0)
    of_score = _FP32 if experts.router.fp32 else element_bytes
    logits = of_score * experts.num_experts
    # The scores, and what the weights of the chosen ones are divided by.
    scores = _FP32 * experts.num_experts
    if experts.router.normalised and chosen > 1:
        scores += _FP32 * (chosen + 1)
    if of_score > element_bytes:
        # A copy of the router's input, which itself is kept by a shared expert alone.
        scores += _FP32 * width - (0 if shared else element_bytes * width)
    # Of an MLP, the result of its last product is among the 3 C of a block.
    no_mlp = 0 if shared else -element_bytes * width
    of_chosen = 3 * _INT64 + of_score + element_bytes * (2 * width + 4 * size)
    return {
        "none": chosen * of_chosen + logits + scores + 4 * shared,
        "selective": chosen * (_INT64 + element_bytes * (width + 2 * size))
        + logits
        + no_mlp
        + 2 * shared,
        "full": chosen * _INT64 + logits,
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
    of_layers = [kept_bytes(network, element_bytes, layer) for layer in range(len(kinds))]
    kept = [of_kinds[kind] for of_kinds, kind in zip(of_layers, kinds, strict=True)]
    again = (of_kinds["none"] - own for of_kinds, own in zip(of_layers, kept, strict=True))
    return sum(kept) + max(again, default=0)
