"""Block diffusion: the noise of each block of an example, and a recipe with one level for all.

The bound of a sequence is the sum over its blocks of the bound of each, given the blocks before it
(arXiv 2503.09573, eq. 4). A block is noised as an example is under full attention, alone: of its n
answer tokens, l ~ U{1..n} are masked, with the weight n / l (`diffusion/noise.py`). Here is what
blocks add to that: where they are, and levels that are spread over those of an example.

`draw_band` is the published recipe of LLaDA2.0's training code, which is no bound.

Shapes: L positions of one example; K blocks of it have answer tokens.
"""

import torch
from torch import Tensor

from llada_sft.diffusion.noise import Noise, independent
from llada_sft.keys import hashed


def blocks_with(tokens: Tensor, block_length: int) -> list[slice]:
    """Return the blocks that have at least one of these tokens.

    Args:
        tokens: [L] bool.
        block_length: Positions of a block, counted from the start; the last may be shorter.
    """
    length = len(tokens)
    numbers = (tokens.nonzero().squeeze(1) // block_length).tolist()
    starts = [number * block_length for number in dict.fromkeys(numbers)]
    return [slice(start, min(start + block_length, length)) for start in starts]


def block_key(key: int, start: int) -> int:
    """Return the 64-bit key of a block's noise.

    Args:
        key: Of the example's noise.
        start: Where in the example the block starts.
    """
    return hashed("block", key, start)


def rotated(u: float, place: int, count: int) -> float:
    """Return element `place` of `count` equidistant points of [0, 1), rotated by u.

    Each point is uniform if u is, and all of them together are spread evenly. With u from a low
    discrepancy sequence over examples, those of any one place are, too.

    Source: Owen, "Quasi-Monte Carlo sampling" (2003), Cranley-Patterson rotation.
    """
    moved = u + place / count
    return moved if moved < 1 else moved - 1


def block_level(u: float | None, key: int, place: int, count: int) -> float:
    """Return the uniform number of a block.

    Args:
        u: Of the example; None: the blocks of all examples are independent.
        key: Of the block.
        place, count: Which of the K blocks it is.
    """
    return independent(key) if u is None else rotated(u, place, count)


def draw_band(
    response_mask: Tensor,
    u: float,
    key: int,
    band: tuple[float, float],
    twins: int = 1,
    of_answer: bool = True,
) -> list[Noise]:
    """Mask each answer token with one probability for all of them, uniform in a band.

    This is a biased recipe, named so on purpose: without the weight 1/t, and with levels of a part
    of [0, 1) alone, the loss is no bound of the likelihood. It is a mean over the masked tokens:
    of each answer (their weight is L / m with m of L answer tokens masked, and of an answer without
    masked ones nothing is learned), or of the whole batch (their weight is 1).

    Args:
        response_mask: [L] bool, true at the tokens of the response.
        u: Uniform in [0, 1): the place of the probability in the band.
        key: The example's key; it decides which tokens are masked.
        band: Least and largest probability.
        twins: 2 draws a second mask with the numbers 1 - u and 1 - U.
        of_answer: Whether the mean is over those of each answer.

    Source: LLaDA2.0 (arXiv 2512.15745) and its training code dFactory, which draws in [0.3, 0.8).
    """
    response = response_mask.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(key)
    uniform = torch.rand(len(response), generator=generator, dtype=torch.float64)
    low, high = band
    noises = []
    for level, numbers in ((u, uniform), (1 - u, 1 - uniform))[:twins]:
        masked = torch.zeros_like(response_mask)
        chosen = response[numbers < low + (high - low) * level]
        masked[chosen] = True
        share = len(chosen) / len(response)
        weight = 1 / share if of_answer and len(chosen) else 1.0
        noises.append(Noise(masked, share, weight, level))
    return noises
