"""Which masks the likelihood of an answer is averaged over, and how sure the average is.

The bound is the mean over l ~ U{1..L} and over all sets of l masked tokens of (L / l) Σ_masked CE.
It is a sum over strata of l, each with its share of the draws:

- With at least two draws for each l, each l is a stratum; where little is masked, terms differ
  most, and more is drawn. A stratum that has no more masks than draws has each of them once, and no
  error: an answer of one token needs one forward pass, and one of six needs 63 of 128. In the other
  strata, masks are drawn without replacement while they can be listed.
- With fewer draws, [0, 1) is cut into half as many equal parts as there are draws, and two values
  of l are drawn independently in each.

The estimate is the mean of the means of the strata, which is unbiased for any number of draws: each
stratum has the same probability. (The official code spaces l evenly and rounds it, half to even:
even numbers of masked tokens come too often.) Its variance is (1 / K²) Σ (1 - n/N) s² / n: s² is
the sample variance of a stratum, n are its draws and N its masks, or infinite. Its root is the
standard error that is reported.

Masks depend on the key and on the length of the answer alone. Answers of one length share them
under one key: the difference of two answers then varies less than each.

Shapes: L tokens of the answer; K strata.

Source: LLaDA (arXiv 2502.09992), eq. 6 and 14; Cochran, "Sampling Techniques" (1977), 5.3 and 2.6.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.keys import hashed

# Masks of a stratum that are listed to be drawn without replacement.
_MOST_LISTED = 4096


@dataclass(frozen=True)
class Likelihood:
    """A lower bound of a log-likelihood, and how far it may be off.

    Attributes:
        value: Nats.
        standard_error: Of `value`, in nats; None if there was one draw for several masks.
    """

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Stratum:
    """Masks of an answer that stand for all masks of a stratum.

    Attributes:
        masks: [L] bool each, true at masked tokens.
        num_all: Masks of the stratum, if they were drawn without replacement; None: with it.
    """

    masks: list[Tensor]
    num_all: int | None


def draw_strata(length: int, num_draws: int, key: int) -> list[Stratum]:
    """Draw the masks of an answer.

    Args:
        length: L, at least 1.
        num_draws: At most so many masks are drawn; at least 1.
        key: Of the noise.
    """
    if length < 1 or num_draws < 1:
        raise ValueError(f"length and num_draws must be at least 1, got {length} and {num_draws}")
    generator = torch.Generator().manual_seed(hashed("likelihood", key, length))
    if num_draws >= min(2 * length, 2**length - 1):
        shares = _shares(length, num_draws)
        return [_of_level(length, level, shares[level], generator) for level in shares]
    num_strata = max(1, num_draws // 2)
    counts = [num_draws // num_strata + (i < num_draws % num_strata) for i in range(num_strata)]
    strata = []
    for number, count in enumerate(counts):
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        levels = 1 + ((number + uniform) / num_strata * length).long()
        # The largest uniform numbers may be rounded up.
        levels = levels.clamp(max=length)
        masks = [_random_mask(length, level, generator) for level in levels.tolist()]
        strata.append(Stratum(masks, None))
    return strata


def combine(length: int, strata: Sequence[Stratum], losses: Sequence[float]) -> Likelihood:
    """Return the bound and its standard error.

    Args:
        length: L.
        strata: What `draw_strata` returned.
        losses: Σ CE over the masked tokens of each mask, in the order of the strata, nats.
    """
    value, variance = 0.0, 0.0
    remaining = iter(losses)
    for stratum in strata:
        terms = [length / int(mask.sum()) * next(remaining) for mask in stratum.masks]
        mean, count = math.fsum(terms) / len(terms), len(terms)
        value -= mean / len(strata)
        if count == stratum.num_all:
            continue
        spread = math.fsum((term - mean) ** 2 for term in terms)
        missing = 1 - count / stratum.num_all if stratum.num_all else 1.0
        variance += missing * spread / (count - 1) / count if count > 1 else math.inf
    error = math.sqrt(variance) / len(strata)
    return Likelihood(value, error if math.isfinite(error) else None)


def _shares(length: int, num_draws: int) -> dict[int, int]:
    """Return the draws of each level, by level; no level has more of them than masks.

    If the losses of tokens depended on the token alone, the terms of level l would have a variance
    in proportion to 1/l - 1/L. The draws that each level has besides two are in proportion to its
    root, which is best then. The estimate is unbiased however they are dealt out.

    Source: Cochran, 5.5 (Neyman's allocation).
    """
    shares: dict[int, int] = {}
    levels = list(range(1, length + 1))
    while levels:
        proposed = _proportional(levels, length, num_draws - sum(shares.values()))
        small = [level for level in levels if math.comb(length, level) <= proposed[level]]
        if not small:
            return shares | proposed
        # What these do not need is dealt out again.
        shares |= {level: math.comb(length, level) for level in small}
        levels = [level for level in levels if level not in small]
    return shares


def _proportional(levels: Sequence[int], length: int, num_draws: int) -> dict[int, int]:
    weights = {level: math.sqrt(1 / level - 1 / length) for level in levels}
    extra = num_draws - 2 * len(levels)
    total = sum(weights.values()) or 1.0
    return {level: 2 + math.floor(extra * weights[level] / total) for level in levels}


def _of_level(length: int, level: int, count: int, generator: torch.Generator) -> Stratum:
    num_all = math.comb(length, level)
    if num_all > _MOST_LISTED:
        return Stratum([_random_mask(length, level, generator) for _ in range(count)], None)
    listed = list(itertools.combinations(range(length), level))
    chosen = torch.randperm(num_all, generator=generator)[:count].tolist()
    return Stratum([_mask_at(torch.tensor(listed[i]), length) for i in chosen], num_all)


def _random_mask(length: int, level: int, generator: torch.Generator) -> Tensor:
    return _mask_at(torch.randperm(length, generator=generator)[:level], length)


def _mask_at(places: Tensor, length: int) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[places] = True
    return mask
