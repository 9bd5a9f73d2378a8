"""How many floating point operations a training needs, and how many a GPU makes.

Only what the model asks for counts: neither padding nor the blocks that are computed again with
activation checkpointing. The share that a training reaches of a GPU's rate is its MFU.
"""

import math
import re

from llada_sft.model.settings import Sizes

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


def needed_operations(sizes: Sizes, tokens: float, squares: float, masked: float) -> float:
    """Count the operations of forward and backward.

    6 · P · Σ L + 12 · layers · width · Σ L² + 6 · V · width · M: each of the P parameters of the
    blocks multiplies and adds once per token forward and twice backward; so do the scores and the
    weighted values of attention, L² of each per example; the head of V rows runs at M tokens.

    Args:
        sizes: Of the network.
        tokens: Σ L, the tokens of all examples.
        squares: Σ L², over the examples.
        masked: M, the masked tokens.
    """
    shapes = sizes.parameter_shapes()
    blocks = sum(math.prod(shape) for name, shape in shapes.items() if ".blocks." in name)
    attention = 12 * sizes.n_layers * sizes.d_model * squares
    head = 6 * sizes.num_embeddings * sizes.d_model * masked
    return 6 * blocks * tokens + attention + head


def peak_rate(device_name: str) -> float | None:
    """Return the dense bf16 operations per second of a GPU; None if it is not known here."""
    found = (rate for pattern, rate in _PEAK_RATES if re.search(pattern, device_name))
    return next(found, None)
