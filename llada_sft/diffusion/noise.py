"""Which response tokens are masked: keyed noise that any rank can draw again at any time.

Nothing here touches torch's global generator. Every draw is a function of its key, so two ranks
never share noise by accident, a resumed run draws what the interrupted one would have drawn, and
epochs differ.

The noise level of an example comes from `low_discrepancy`: a Kronecker sequence over the global
example index, with one keyed random shift for each step. Each u is uniform on [0, 1), as the loss
requires, but the levels of one global batch are spread evenly, which removes most of the variance
of the batch's loss.

Shapes: L positions of one example, prompt and response together; Lr of them are the response.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llada_sft.keys import hashed

Masking = Literal["exact", "bernoulli"]

# The golden ratio's conjugate (√5 - 1) / 2 as a 64-bit fraction: index * ratio mod 1 is then exact
# integer arithmetic, however far the index has run.
_GOLDEN_RATIO = 0x9E3779B97F4A7C15
_ONE = 1 << 64


@dataclass(frozen=True)
class Noise:
    """One draw of the forward process for one example.

    Attributes:
        masked: [L] bool, true where the input is replaced by the mask token.
        t: The noise level: the fraction of the response that is masked (`exact`), or the time that
            was drawn (`bernoulli`).
        weight: What the cross-entropy of each masked position is multiplied by.
    """

    masked: Tensor
    t: float
    weight: float


def noise_key(seed: int, epoch: int, file: str, row: int, part: int = 0) -> int:
    """Return the 64-bit key of an example's noise.

    Args:
        seed: `run.seed`.
        epoch: Number of times the data has been seen in full.
        file: Name of the shard, the same on every rank.
        row: Row of the shard.
        part: Numbers the examples that the hook made from one row.
    """
    return hashed("noise", seed, epoch, file, row, part)


def independent(key: int) -> float:
    """Return the uniform number in [0, 1) that belongs to `key`."""
    return _unit_interval(hashed("uniform", key))


def step_shift(seed: int, step: int) -> float:
    """Return the random shift, uniform in [0, 1), of the sequence of one optimizer step."""
    return _unit_interval(hashed("shift", seed, step))


def low_discrepancy(shift: float, index: int) -> float:
    """Return element `index` of the shifted Kronecker sequence, frac(shift + index (√5 - 1) / 2).

    Args:
        shift: In [0, 1), the same for all examples of a global batch.
        index: Index of the example in the global batch, over ranks and accumulation.

    Source: Owen, "Quasi-Monte Carlo sampling" (2003), Cranley-Patterson rotation of a
    one-dimensional Kronecker sequence.
    """
    return _unit_interval((int(shift * _ONE) + index * _GOLDEN_RATIO) % _ONE)


def draw_noise(
    response_mask: Tensor, u: float, key: int, masking: Masking, eps: float = 1e-3
) -> Noise:
    """Mask a random part of the response; the prompt is never masked.

    `exact`: l = 1 + floor(u Lr) tokens, a uniformly random subset, each with weight Lr / l.
    `bernoulli`: each token with probability p = (1 - eps) u + eps and weight 1 / p.

    Args:
        response_mask: [L] bool, true at the tokens of the response.
        u: The noise level's uniform number, in [0, 1).
        key: The example's key (`noise_key`); it decides which tokens are masked.
        masking: One of the two estimators above; they have the same expectation up to eps.
        eps: Smallest masking probability of `bernoulli`.

    Source: LLaDA (arXiv 2502.09992), eq. 14 for `exact`; algorithm 2 and the official
    GUIDELINES.md for `bernoulli`.
    """
    response = response_mask.nonzero().squeeze(1)
    if len(response) == 0:
        raise ValueError("an example without response tokens has no loss and cannot be masked")
    generator = torch.Generator().manual_seed(key)
    if masking == "exact":
        return _mask_exactly(response, len(response_mask), u, generator)
    return _mask_each(response, len(response_mask), u, eps, generator)


def _mask_exactly(response: Tensor, length: int, u: float, generator: torch.Generator) -> Noise:
    num_response = len(response)
    num_masked = 1 + math.floor(u * num_response)
    chosen = torch.randperm(num_response, generator=generator)[:num_masked]
    masked = _true_at(response[chosen], length)
    return Noise(masked, t=num_masked / num_response, weight=num_response / num_masked)


def _mask_each(
    response: Tensor, length: int, t: float, eps: float, generator: torch.Generator
) -> Noise:
    p = (1 - eps) * t + eps
    # Drawn in double: a 24-bit uniform would add its own granularity to small p.
    chosen = torch.rand(len(response), generator=generator, dtype=torch.float64) < p
    return Noise(_true_at(response[chosen], length), t=t, weight=1 / p)


def _true_at(positions: Tensor, length: int) -> Tensor:
    masked = torch.zeros(length, dtype=torch.bool)
    masked[positions] = True
    return masked


def _unit_interval(key: int) -> float:
    """Map 64 bits to [0, 1) by the 53 that a double can hold, so that 1.0 cannot come out."""
    return (key >> 11) / (1 << 53)
