"""Which candidates of a step are written: how many of the best ones.

All candidates are sorted, the best one first; among equal ones the one further left. A rule says
how many are taken. Each takes at least one, so that every sampler ends.

Shapes: R rows, L positions of a row, N of them or fewer.
"""

import torch
from torch import Tensor

from llada_sft.choices import Rule


def select(rule: Rule, scores: Tensor, num_candidates: Tensor, share: Tensor) -> Tensor:
    """Return which candidates are taken, [R, L] bool.

    Args:
        rule: Its name, and its number.
        scores: [R, L] floating: probabilities, or negative entropies for the rule entropy; -inf but
            at candidates.
        num_candidates: [R] int64.
        share: [R] int64, what the rule fixed takes, and the rule above at least.
    """
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    name, bound = rule
    if name == "threshold":
        numbers = (ordered >= bound).sum(1)
    elif name == "factor":
        numbers = by_factor(ordered, num_candidates, bound)
    elif name == "entropy":
        numbers = by_entropy(-ordered, bound)
    elif name == "above":
        numbers = (ordered > bound).sum(1).maximum(share)
    else:
        numbers = share
    numbers = numbers.clamp(min=1).minimum(num_candidates)
    ranks = torch.arange(scores.shape[1], device=scores.device)
    taken = torch.zeros_like(scores, dtype=torch.bool)
    return taken.scatter_(1, order, ranks < numbers[:, None])


def by_factor(scores: Tensor, num_candidates: Tensor, factor: float) -> Tensor:
    """Take the k best ones while each has at least the probability 1 - factor / (k + 1).

    The first one always has. If only the last candidate of a row fails, it is taken, too: the
    authors' code does so.

    Source: Fast-dLLM (arXiv 2505.22618), and its released generate.py.

    Args:
        scores: [R, N] floating, probabilities.
        num_candidates: [R] int64.
        factor: At least 0.

    Returns:
        [R] int64.
    """
    ranks = torch.arange(scores.shape[1], device=scores.device)
    needed = 1 - factor / (ranks + 2).double()
    fails = (scores < needed) & (ranks > 0) & (ranks < num_candidates[:, None])
    last = num_candidates - 1
    first_failure = torch.where(fails.any(1), fails.int().argmax(1), last)
    return torch.where(first_failure == last, num_candidates, first_failure)


def by_entropy(entropies: Tensor, bound: float) -> Tensor:
    """Take the largest set whose entropies, without the largest of them, sum up to `bound` at most.

    Sorted, the largest one is the last: what is summed are the entropies before it. The sum bounds
    what the joint distribution of the set differs from independent ones.

    Source: Ben-Hamu et al. (arXiv 2505.24857).

    Args:
        entropies: [R, N] floating, in nats, the smallest first; inf after the last candidate.
        bound: In nats.

    Returns:
        [R] int64.
    """
    sums = entropies.nan_to_num(posinf=0.0).cumsum(1) - entropies.nan_to_num(posinf=0.0)
    return ((sums <= bound) & entropies.isfinite()).sum(1)
