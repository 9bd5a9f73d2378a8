"""Which response tokens are masked: keyed noise that any rank can draw again at any time.

Nothing here touches torch's global generator. Every draw is a function of its key, so two ranks
never share noise by accident, a resumed run draws what the interrupted one would have drawn, and
epochs differ.

The noise level of an example comes from `low_discrepancy`: a Kronecker sequence over the global
example index, with one keyed random shift for each step. Each u is uniform on [0, 1), as the loss
requires, but the levels of one global batch are spread evenly, which removes most of the variance
of the batch's loss.

`draw_twins` draws two masks for one example, which hide what the other shows. The loss of a mask is
higher where more is masked, and differs with the tokens that are masked; the mean of the twins
differs much less.

Shapes: L positions of one example, prompt and response together; Lr of them are the response.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.choices import Masking
from llada_sft.diffusion.levels import LevelDensity
from llada_sft.keys import hashed

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
        weight: What the cross-entropy of each masked position is multiplied by, `importance`
            included.
        level: The level that was drawn, in [0, 1): the uniform number, or what a density has made
            of it.
        importance: 1 / the density of the draw; 1 for uniform levels.
    """

    masked: Tensor
    t: float
    weight: float
    level: float = 0.0
    importance: float = 1.0


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
    response_mask: Tensor,
    u: float,
    key: int,
    masking: Masking,
    eps: float = 1e-3,
    density: LevelDensity | None = None,
) -> Noise:
    """Mask a random part of the response; the prompt is never masked.

    `exact`: l = 1 + floor(v Lr) tokens, a uniformly random subset, each with weight Lr / l.
    `bernoulli`: each token with probability p = (1 - eps) v + eps and weight 1 / p.

    The level v is u itself, or with a density its quantile; then the weight is divided by how much
    more likely the draw is than with u (`exact`: that l; `bernoulli`: that v).

    Args:
        response_mask: [L] bool, true at the tokens of the response.
        u: The noise level's uniform number, in [0, 1).
        key: The example's key (`noise_key`); it decides which tokens are masked.
        masking: One of the two estimators above; they have the same expectation up to eps.
        eps: Smallest masking probability of `bernoulli`.
        density: What levels are drawn from; None: from [0, 1) uniformly.

    Source: LLaDA (arXiv 2502.09992), eq. 14 for `exact`; algorithm 2 and the official
    GUIDELINES.md for `bernoulli`.
    """
    return _draw(response_mask, u, key, masking, eps, density, twins=1)[0]


def draw_twins(
    response_mask: Tensor,
    u: float,
    key: int,
    masking: Masking,
    eps: float = 1e-3,
    density: LevelDensity | None = None,
) -> tuple[Noise, Noise]:
    """Draw two masks of one example; the first is that of `draw_noise`, and the loss is their mean.

    `exact`: of one permutation, the first masks its first l tokens, the second its last Lr + 1 - l.
    Lr + 1 - l is uniform on 1 ... Lr as l is, and the last tokens of a random permutation are a
    random subset: the second is as much the official draw as the first. Together they mask every
    token, and exactly one of them twice. (A plain complement would mask Lr - l tokens, 0 to Lr - 1:
    an empty mask has no loss, and the mean would be too low.)
    `bernoulli`: where the first masks the tokens with U < p(v), the second masks those with
    1 - U < p(1 - v). 1 - U and 1 - v are uniform as U and v are, and independent of each other. As
    p(v) + p(1 - v) = 1 + eps, they mask every token, and a share eps of them twice.

    With a density, the two are one draw of level v: both have its importance.
    """
    first, second = _draw(response_mask, u, key, masking, eps, density, twins=2)
    return first, second


def _draw(
    response_mask: Tensor,
    u: float,
    key: int,
    masking: Masking,
    eps: float,
    density: LevelDensity | None,
    twins: int,
) -> list[Noise]:
    """Draw the first twin, or both."""
    response = response_mask.nonzero().squeeze(1)
    if len(response) == 0:
        raise ValueError("an example without response tokens has no loss and cannot be masked")
    generator = torch.Generator().manual_seed(key)
    level = u if density is None else density.level(u)
    length = len(response_mask)
    if masking == "exact":
        return _mask_exactly(response, length, level, generator, density, twins)
    return _mask_each(response, length, level, eps, generator, density, twins)


def _mask_exactly(
    response: Tensor,
    length: int,
    level: float,
    generator: torch.Generator,
    density: LevelDensity | None,
    twins: int,
) -> list[Noise]:
    num_response = len(response)
    num_masked = min(1 + math.floor(level * num_response), num_response)
    importance = 1.0
    if density is not None:
        chance = density.chance((num_masked - 1) / num_response, num_masked / num_response)
        importance = 1 / (num_response * chance)
    order = response[torch.randperm(num_response, generator=generator)]
    # They share the token at num_masked - 1.
    parts = (order[:num_masked], order[num_masked - 1 :])
    return [
        Noise(
            masked=_true_at(part, length),
            t=len(part) / num_response,
            weight=importance * num_response / len(part),
            level=level,
            importance=importance,
        )
        for part in parts[:twins]
    ]


def _mask_each(
    response: Tensor,
    length: int,
    level: float,
    eps: float,
    generator: torch.Generator,
    density: LevelDensity | None,
    twins: int,
) -> list[Noise]:
    importance = 1.0 if density is None else 1 / density.at(level)
    # Drawn in double: a 24-bit uniform would add its own granularity to small p.
    uniform = torch.rand(len(response), generator=generator, dtype=torch.float64)
    draws = ((level, uniform), (1 - level, 1 - uniform))
    noises = []
    for t, numbers in draws[:twins]:
        p = (1 - eps) * t + eps
        masked = _true_at(response[numbers < p], length)
        noises.append(Noise(masked, t, importance / p, level, importance))
    return noises


def _true_at(positions: Tensor, length: int) -> Tensor:
    masked = torch.zeros(length, dtype=torch.bool)
    masked[positions] = True
    return masked


def _unit_interval(key: int) -> float:
    """Map 64 bits to [0, 1) by the 53 that a double can hold, so that 1.0 cannot come out."""
    return (key >> 11) / (1 << 53)
