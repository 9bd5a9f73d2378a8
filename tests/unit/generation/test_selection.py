"""How many candidates a step takes: hand values, and definitions read literally."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llada_sft.generation.selection import by_entropy, by_factor, select

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def literal_factor(confidences: list[float], factor: float) -> int:
    """Fast-dLLM's rule, one candidate after the other; `confidences` sorted, best first."""
    number = len(confidences)
    for j in range(2, number + 1):
        if confidences[j - 1] < 1 - factor / (j + 1):
            return number if j == number else j - 1
    return number


@given(confidences=PROBABILITIES, factor=st.floats(0, 5), more=st.integers(0, 3))
def test_factor_is_the_rule_of_its_authors(
    confidences: list[float], factor: float, more: int
) -> None:
    ordered = sorted(confidences, reverse=True)
    padded = row(*ordered, *[-torch.inf] * more)
    number = by_factor(padded, torch.tensor([len(ordered)]), factor)
    assert number.tolist() == [literal_factor(ordered, factor)]


def test_factor_by_hand() -> None:
    """Thresholds of factor 1: none, 2/3, 3/4, 4/5."""
    for confidences, expected in [
        ((0.1, 0.1, 0.1, 0.1), 1),
        ((0.9, 0.7, 0.7, 0.1), 2),
        ((0.9, 0.8, 0.76, 0.1), 4),  # only the last one fails
        ((0.9, 0.8, 0.76, 0.1, 0.1), 3),
        ((0.2, 0.1), 2),
        ((0.1,), 1),
    ]:
        number = by_factor(row(*confidences), torch.tensor([len(confidences)]), 1.0)
        assert number.item() == expected, confidences


@given(entropies=PROBABILITIES, bound=st.floats(0, 3))
def test_entropy_takes_the_largest_set_within_its_bound(
    entropies: list[float], bound: float
) -> None:
    ordered = sorted(entropies)
    number = int(by_entropy(row(*ordered, torch.inf), bound))
    assert 1 <= number <= len(ordered)
    # One rounding of fp64 decides nothing.
    assert sum(ordered[:number]) - ordered[number - 1] <= bound + 1e-9
    if number < len(ordered):
        assert sum(ordered[:number]) > bound - 1e-9


def test_the_best_are_taken_the_leftmost_first_among_equals() -> None:
    scores = row(-torch.inf, 0.5, 0.9, 0.5, -torch.inf)
    three, one = torch.tensor([3]), torch.tensor([1])
    for share, expected in [(0, [2]), (1, [2]), (2, [1, 2]), (5, [1, 2, 3])]:
        taken = select(("fixed", 0.0), scores, three, torch.tensor([share]))
        assert taken[0].nonzero()[:, 0].tolist() == expected
    assert select(("threshold", 0.5), scores, three, one).sum() == 3
    assert select(("threshold", 0.51), scores, three, one).sum() == 1
    assert select(("threshold", 0.95), scores, three, one)[0, 2]


def test_a_row_without_candidates_takes_none() -> None:
    scores = torch.full((1, 3), -torch.inf, dtype=torch.float64)
    zero = torch.tensor([0])
    for rule in ("fixed", "threshold", "factor", "entropy"):
        assert not select((rule, 0.5), scores, zero, zero).any()  # type: ignore[arg-type]
