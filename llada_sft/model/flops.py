"""How many floating point operations a training needs, and how many a GPU makes.

Only what the model asks for counts: neither padding nor the blocks that are computed again with
activation checkpointing. The share that a training reaches of a GPU's rate is its MFU.
"""

import math
import re

from llada_sft.model.families.architecture import Architecture

# Dense bf16, operations per second, from NVIDIA's data sheets (without sparsity). The first that
# is found in the name that CUDA gives.
_PEAK_RATES = (
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH100 NVL\b", 835e12),
    (r"\bG?H[12]00\b", 989e12),
    (r"\bB200\b", 2250e12),
    (r"\bA100\b", 312e12),
    (r"\bL40S\b", 362e12),
)


def needed_operations(
    network: Architecture,
    tokens: float,
    squares: float,
    masked: float,
    adapters: int | None = None,
    halves: int = 1,
) -> float:
    """Count the operations of forward and backward.

    6 · P · Σ L + 12 · layers · H · D · Σ L² + 6 · V · C · M: each of the P parameters of the blocks
    multiplies and adds once per token forward and twice backward; of E experts only those count
    that compute a token. So do the scores and the weighted values of attention, with H heads of D
    features, L² of each per example; the head of V rows and width C runs at M tokens.

    The block objective runs the network on [noisy ; clean]: S = 2 halves of L positions. Nothing
    less gives its loss, so the matrices of both are needed, 6 · P · S · Σ L, though the tokens are
    those of the examples; in place of L² are the pairs of positions of which one sees the other.

    With adapters, the frozen parameters have no gradient: they multiply once backward, 4 instead of
    6, and the A parameters of the adapters add 6 · A · S · Σ L.

    Args:
        network: Its sizes.
        tokens: Σ L, the tokens of all examples.
        squares: Σ L², over the examples; in blocks, the sum of their pairs.
        masked: M, the masked tokens.
        adapters: A, the parameters that are trained; None: all of the network's are.
        halves: S.
    """
    of_weights = 6 if adapters is None else 4
    attention = 12 * network.num_layers * network.num_heads * network.head_dim * squares
    head = of_weights * network.num_embeddings * network.width * masked
    of_blocks = of_weights * _used_by_a_token(network) + 6 * (adapters or 0)
    return of_blocks * halves * tokens + attention + head


def _used_by_a_token(network: Architecture) -> float:
    """Return the parameters of the blocks that compute one token."""
    names, used = network.names.of_block, 0.0
    for layer in range(network.num_layers):
        for name, shape in network.block_shapes(layer):
            size = math.prod(shape)
            if network.experts is not None and name.startswith(f"{names.experts}."):
                size = size * network.experts.per_token // network.experts.num_experts
            used += size
    return used


def peak_rate(device_name: str) -> float | None:
    """Return the dense bf16 operations per second of a GPU; None if it is not known here."""
    found = (rate for pattern, rate in _PEAK_RATES if re.search(pattern, device_name))
    return next(found, None)
