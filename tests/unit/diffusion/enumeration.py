"""A network whose logits depend on the mask in an arbitrary way, so that nothing cancels, and the
expectation of its loss by enumeration of all 64 masks of an answer of six tokens.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_sft.choices import Masking
from llada_sft.diffusion.objective import diffusion_loss

ANSWER = 6
MASKS = [torch.tensor(bits) for bits in itertools.product([False, True], repeat=ANSWER)]
# The smallest masking probability of bernoulli.
EPS = 0.05


def tabulated_losses(seed: int) -> Tensor:
    """Return [64] fp64: Σ_masked CE of each mask, through the training loss with weight 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(MASKS), ANSWER, 7, generator=generator)
    targets = torch.randint(0, 7, (ANSWER,), generator=generator)
    by_hand = torch.stack(
        [
            F.cross_entropy(logits[i], targets, reduction="none")[m].sum()
            for i, m in enumerate(MASKS)
        ]
    )
    ones = torch.ones(1, 1)
    losses = [
        diffusion_loss(logits[i : i + 1], targets[None], m[None], ones, 1, 1)
        for i, m in enumerate(MASKS)
    ]
    assert torch.allclose(torch.stack(losses), by_hand, rtol=1e-6)
    return torch.stack(losses).double()


def mask_index(masked: Tensor) -> int:
    return int("".join(str(int(bit)) for bit in masked.tolist()), 2)


def expectation(losses: Tensor, masking: Masking) -> float:
    """E over t and all masks; for bernoulli by quadrature over p (a polynomial in p)."""
    total = 0.0
    for mask, loss in zip(MASKS, losses.tolist(), strict=True):
        count = int(mask.sum())
        if count == 0:
            continue
        chance_times_weight = 1 / ANSWER / math.comb(ANSWER, count) * ANSWER / count
        if masking == "bernoulli":
            chance_times_weight = _bernoulli_integral(count)
        total += chance_times_weight * loss / ANSWER
    return total


def _bernoulli_integral(count: int, n: int = 200) -> float:
    """E over p ~ U[EPS, 1) of p^count (1 - p)^(ANSWER - count) / p, by Simpson's rule."""
    p = torch.linspace(EPS, 1, n + 1, dtype=torch.float64)
    rule = torch.tensor([1.0, *[4.0, 2.0] * (n // 2 - 1), 4.0, 1.0], dtype=torch.float64)
    values = p ** (count - 1) * (1 - p) ** (ANSWER - count)
    return float((rule * values).sum()) / (3 * n)
