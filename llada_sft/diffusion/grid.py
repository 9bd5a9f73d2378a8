"""The masks of a validation: noise levels and masks spread evenly over rows and draws together.

An estimate of the likelihood varies with the levels that are drawn, and with the tokens that are
masked at a level. Both are spread here, and each mask alone is still the uniform draw of `exact`
masking, so that the expectation is the same:

1. *Levels.* Each row has one level in each of D equal parts of [0, 1). The place within the part
   comes from one low-discrepancy sequence over all rows, in the order of their lengths: rows of
   similar length have levels that are spread, too.
2. *Masks.* With l tokens masked, each of them has the weight Lr / l in the estimate. From the
   lowest level on, each mask takes the tokens of which the masks before have taken least, by this
   weight. So all tokens of a row count nearly the same. Which tokens these are is a random
   permutation that is keyed by the row: whatever the plan, a mask is a uniformly random subset.

Nothing depends on ranks. The levels depend on the lengths of all rows, the masks on the row alone.

Shapes: N rows; D draws of each; L positions of a row, Lr of them are the response.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llada_sft.diffusion.noise import Noise, independent, low_discrepancy
from llada_sft.keys import hashed


def grid_levels(response_lengths: Sequence[int], draws: int, seed: int = 0) -> list[list[float]]:
    """Return the D levels of each row, ascending, in [0, 1).

    Args:
        response_lengths: Lr of each row.
        draws: D.
        seed: Another seed gives other levels; a validation always takes 0.

    Source: Owen, "Monte Carlo theory, methods and examples" (2013), chapters 8 (stratification)
    and 15 (randomized quasi-Monte Carlo).
    """
    shift = independent(hashed("grid", seed))
    by_length = sorted(range(len(response_lengths)), key=lambda row: response_lengths[row])
    levels: list[list[float]] = [[] for _ in response_lengths]
    for place, row in enumerate(by_length):
        within = low_discrepancy(shift, place)
        levels[row] = [(part + within) / draws for part in range(draws)]
    return levels


def grid_masks(response_mask: Tensor, levels: Sequence[float], key: int) -> list[Noise]:
    """Return the masks of a row, one for each level, with the weight Lr / l of their tokens.

    Args:
        response_mask: [L] bool, true at the tokens of the response.
        levels: The row's, of `grid_levels`.
        key: The row's key; it decides which tokens are masked.

    Raises:
        ValueError: The row has no response token.
    """
    response = response_mask.nonzero().squeeze(1)
    if len(response) == 0:
        raise ValueError("a row without response tokens has no loss and cannot be masked")
    generator = torch.Generator().manual_seed(key)
    tokens = response[torch.randperm(len(response), generator=generator)]
    # What each token has counted so far, without the factor Lr.
    counted = torch.zeros(len(tokens), dtype=torch.float64)
    masks = []
    for level in levels:
        count = min(1 + math.floor(level * len(tokens)), len(tokens))
        chosen = counted.argsort(stable=True)[:count]
        counted[chosen] += 1 / count
        masked = torch.zeros(len(response_mask), dtype=torch.bool)
        masked[tokens[chosen]] = True
        weight = len(tokens) / count
        masks.append(Noise(masked, t=count / len(tokens), weight=weight, level=level))
    return masks
