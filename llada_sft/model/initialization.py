"""Random weights that depend on the seed alone: not on the number of ranks, nor on the order.

A parameter is cut into chunks of a fixed size, and each chunk has a generator of its own, seeded
from (seed, parameter name, chunk). A rank draws only the chunks that overlap its ZeRO-3 slice.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llada_sft.keys import hashed
from llada_sft.model.network import Network
from llada_sft.model.partition import OwnedSlice, full_shape, owned_slice

CHUNK = 1 << 20
STD = 0.02


@torch.no_grad()
def initialize(model: Network, seed: int) -> None:
    """Fill a network, whole or partitioned, with random weights in place.

    Matrices are normal with std 0.02, those that write to the residual stream smaller by
    sqrt(2 layers); norms are one, biases and buffers zero.

    Source: Radford et al., GPT-2 (2019), section 2.3.
    """
    network = model.architecture
    residual_std = STD / math.sqrt(2 * network.num_layers)
    for name, parameter in model.named_parameters():
        owned, shape = owned_slice(parameter), full_shape(parameter)
        if not network.decays(name):
            owned.values.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        std = residual_std if network.writes_to_residual(name) else STD
        draw = partial(_draw_normal, std=std)
        fill_drawn(owned, math.prod(shape), hashed("init", seed, name), draw)
    for buffer in model.buffers():
        buffer.zero_()


def _draw_normal(chunk: Tensor, generator: torch.Generator, std: float) -> None:
    chunk.normal_(std=std, generator=generator)


def fill_drawn(
    owned: OwnedSlice, numel: int, key: int, draw: Callable[[Tensor, torch.Generator], None]
) -> None:
    """Write this rank's part of `numel` random values; only the chunks that meet it are drawn.

    Args:
        owned: This rank's part of a parameter.
        numel: Elements of the whole parameter.
        key: Keys the values.
        draw: Fills an fp32 chunk on the CPU.
    """
    end = owned.start + len(owned.values)
    for low in range(owned.start // CHUNK * CHUNK, end, CHUNK):
        # `new_empty`: zero.Init replaces torch.empty and torch.randn while a model is being built.
        chunk = owned.values.new_empty(min(CHUNK, numel - low), dtype=torch.float32, device="cpu")
        draw(chunk, torch.Generator().manual_seed(hashed(key, low)))
        first, last = max(owned.start, low), min(end, low + len(chunk))
        owned.values[first - owned.start : last - owned.start] = chunk[first - low : last - low]
