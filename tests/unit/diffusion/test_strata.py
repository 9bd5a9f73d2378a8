"""The masks of a likelihood: unbiased, with an honest standard error, and few of them suffice."""

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from llada_sft.diffusion.strata import Likelihood, combine, draw_strata
from tests.unit.diffusion.enumeration import ANSWER, mask_index, tabulated_losses

LOSSES = tabulated_losses(3)
# Of an answer of nine tokens, Σ CE of each mask by its index.
LONG = 9
LONG_LOSSES = 3 * torch.rand(2**LONG, generator=torch.Generator().manual_seed(5)).double()


def exact(losses: Tensor, length: int) -> float:
    """The bound by enumeration of all masks."""
    total = 0.0
    for bits in product([False, True], repeat=length):
        count = sum(bits)
        if count:
            chance = 1 / length / math.comb(length, count)
            total -= chance * length / count * float(losses[mask_index(torch.tensor(bits))])
    return total


def estimate(losses: Tensor, length: int, num_draws: int, key: int) -> Likelihood:
    strata = draw_strata(length, num_draws, key)
    masks = [mask for stratum in strata for mask in stratum.masks]
    assert len(masks) <= num_draws
    return combine(length, strata, [float(losses[mask_index(mask)]) for mask in masks])


def test_six_tokens_are_enumerated_with_63_draws_or_more() -> None:
    for num_draws in (63, 64, 128):
        bound = estimate(LOSSES, ANSWER, num_draws, key=1)
        assert bound.value == pytest.approx(exact(LOSSES, ANSWER), rel=1e-12)
        assert bound.standard_error == 0.0


def test_an_answer_of_one_token_needs_one_mask() -> None:
    (stratum,) = draw_strata(1, 128, 0)
    assert [mask.tolist() for mask in stratum.masks] == [[True]]
    assert combine(1, [stratum], [2.5]) == Likelihood(-2.5, 0.0)


@pytest.mark.parametrize("num_draws", [1, 2, 7, 8, 12, 32, 62])
def test_the_mean_over_keys_is_the_bound(num_draws: int) -> None:
    values = [estimate(LOSSES, ANSWER, num_draws, key).value for key in range(600)]
    mean, error = mean_and_error(values)
    assert abs(mean - exact(LOSSES, ANSWER)) < 3 * error


@pytest.mark.parametrize("num_draws", [6, 24, 40])
def test_the_standard_error_is_the_deviation_over_keys(num_draws: int) -> None:
    bounds = [estimate(LONG_LOSSES, LONG, num_draws, key) for key in range(800)]
    deviation = torch.tensor([bound.value for bound in bounds]).std()
    squares = [bound.standard_error**2 for bound in bounds if bound.standard_error is not None]
    assert len(squares) == len(bounds)
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(float(deviation), rel=0.1)


def test_one_draw_of_several_masks_has_no_standard_error() -> None:
    assert estimate(LOSSES, ANSWER, 1, key=0).standard_error is None


@pytest.mark.parametrize(("losses", "length"), [(LOSSES, ANSWER), (LONG_LOSSES, LONG)])
def test_at_128_draws_the_error_is_a_third_of_independent_draws(
    losses: Tensor, length: int
) -> None:
    """Independent draws: each has its own t ~ U[0, 1), and each token is masked with chance t."""
    generator = torch.Generator().manual_seed(0)
    bound = exact(losses, length)
    ours = [estimate(losses, length, 128, key).value - bound for key in range(100)]
    theirs = [bernoulli(losses, length, generator) - bound for _ in range(100)]
    assert root_mean_square(ours) <= root_mean_square(theirs) / 3


def bernoulli(
    losses: Tensor, length: int, generator: torch.Generator, num_draws: int = 128
) -> float:
    t = torch.rand(num_draws, 1, generator=generator, dtype=torch.float64)
    masked = torch.rand(num_draws, length, generator=generator) < t
    terms = [
        float(losses[mask_index(mask)]) / float(own)
        for mask, own in zip(masked, t, strict=True)
        if mask.any()
    ]
    return -sum(terms) / num_draws


def test_masks_depend_on_the_key_and_the_length_alone() -> None:
    def drawn(key: int) -> list[Sequence[bool]]:
        return [mask.tolist() for each in draw_strata(20, 64, key) for mask in each.masks]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_strata_of_a_long_answer_are_in_order_and_equally_large() -> None:
    strata = draw_strata(100, 21, 4)
    assert [len(stratum.masks) for stratum in strata] == [3, *[2] * 9]
    for number, stratum in enumerate(strata):
        for mask in stratum.masks:
            assert number * 10 < int(mask.sum()) <= (number + 1) * 10


def test_numbers_of_masked_tokens_are_uniform() -> None:
    counts = torch.zeros(5)
    for key in range(2000):
        (stratum,) = draw_strata(4, 1, key)
        counts[int(stratum.masks[0].sum())] += 1
    assert counts[0] == 0
    assert torch.allclose(counts[1:] / 2000, torch.tensor(0.25), atol=0.04)


def test_masks_of_a_level_are_drawn_without_replacement() -> None:
    for stratum in draw_strata(8, 128, 0):
        masks = {tuple(mask.tolist()) for mask in stratum.masks}
        assert len(masks) == len(stratum.masks)
        assert stratum.num_all == math.comb(8, sum(next(iter(masks))))


@pytest.mark.parametrize(("length", "num_draws"), [(0, 4), (4, 0)])
def test_nothing_to_draw_is_an_error(length: int, num_draws: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        draw_strata(length, num_draws, 0)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std()) / math.sqrt(len(values))


def root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))
