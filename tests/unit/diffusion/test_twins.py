"""Twins of masks, and levels from a density: what they mask, and that both are unbiased.

Unbiased by enumeration: an answer of six tokens has 720 permutations and six numbers of masked
tokens; `torch.randperm` returns each permutation here, so all of them go through the code.
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.choices import Masking
from llada_sft.diffusion.levels import NUM_BINS, LevelDensity
from llada_sft.diffusion.noise import Noise, draw_noise, draw_twins, independent, noise_key
from tests.unit.diffusion.enumeration import (
    ANSWER,
    EPS,
    expectation,
    mask_index,
    tabulated_losses,
)

RESPONSE = torch.ones(ANSWER, dtype=torch.bool)
PERMUTATIONS = list(itertools.permutations(range(ANSWER)))
# Of no shape in particular; the bins' edges do not meet those of sixths.
STEEP = LevelDensity(
    tuple(0.2 + 0.8 * (3.7 if number < 3 else 0.377) for number in range(NUM_BINS))
)
DENSITIES = pytest.mark.parametrize("density", [None, STEEP], ids=["uniform", "importance"])


def value(noise: Noise, table: list[float]) -> float:
    return noise.weight * table[mask_index(noise.masked)] / ANSWER


def enumerated(
    monkeypatch: pytest.MonkeyPatch, density: LevelDensity | None
) -> Iterator[tuple[float, Noise, Noise]]:
    """Yield both twins of every l and permutation, with how likely they are."""
    level = density or LevelDensity((1.0,) * NUM_BINS)
    for order in PERMUTATIONS:
        monkeypatch.setattr(torch, "randperm", lambda *args, order=order, **kw: torch.tensor(order))
        for num_masked in range(1, ANSWER + 1):
            start, end = (num_masked - 1) / ANSWER, num_masked / ANSWER
            # The u in the middle of those that lead to this l.
            below = level.chance(0.0, start)
            u = below + level.chance(start, end) / 2
            first, second = draw_twins(RESPONSE, u, 0, "exact", density=density)
            assert int(first.masked.sum()) == num_masked
            yield level.chance(start, end) / len(PERMUTATIONS), first, second


@DENSITIES
def test_exact_twins_and_each_of_them_are_unbiased(
    monkeypatch: pytest.MonkeyPatch, density: LevelDensity | None
) -> None:
    losses = tabulated_losses(3)
    table, expected = losses.tolist(), expectation(losses, "exact")
    found = [
        (chance, value(a, table), value(b, table))
        for chance, a, b in enumerated(monkeypatch, density)
    ]
    assert math.fsum(chance for chance, _, _ in found) == pytest.approx(1, rel=1e-12)
    for part in (lambda a, b: a, lambda a, b: b, lambda a, b: (a + b) / 2):
        mean = math.fsum(chance * part(a, b) for chance, a, b in found)
        assert mean == pytest.approx(expected, rel=1e-12)


def test_the_plain_complement_is_biased() -> None:
    """Why twins share a token: with masks of l and L - l tokens the mean is too low."""
    losses = tabulated_losses(3).tolist()
    means: list[Fraction] = []
    for complement in (False, True):
        total = Fraction(0)
        for order in PERMUTATIONS:
            for num_masked in range(1, ANSWER + 1):
                masked = torch.zeros(ANSWER, dtype=torch.bool)
                masked[list(order[num_masked:] if complement else order[:num_masked])] = True
                if count := int(masked.sum()):
                    total += Fraction(losses[mask_index(masked)]) / count
        means.append(total / len(PERMUTATIONS) / ANSWER)
    assert float(means[1] / means[0]) < 0.95


@DENSITIES
@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
@given(
    prompt=st.integers(0, 4),
    answer=st.integers(1, 40),
    u=st.floats(0, 1, exclude_max=True),
    key=st.integers(0, 2**64 - 1),
)
def test_twins_mask_every_token_of_the_answer_between_them(
    masking: Masking, density: LevelDensity | None, prompt: int, answer: int, u: float, key: int
) -> None:
    response = torch.arange(prompt + answer) >= prompt
    first, second = draw_twins(response, u, key, masking, EPS, density)
    alone = draw_noise(response, u, key, masking, EPS, density)
    assert torch.equal(first.masked, alone.masked)
    assert (first.t, first.weight, first.importance) == (alone.t, alone.weight, alone.importance)
    assert torch.equal(first.masked | second.masked, response)
    assert second.importance == first.importance
    if masking == "exact":
        assert int((first.masked & second.masked).sum()) == 1
        assert second.weight == first.importance * answer / int(second.masked.sum())
        assert first.t + second.t == pytest.approx((answer + 1) / answer)
    else:
        p = [(1 - EPS) * noise.t + EPS for noise in (first, second)]
        assert sum(p) == pytest.approx(1 + EPS)
        assert [noise.weight * one for noise, one in zip((first, second), p, strict=True)] == (
            pytest.approx([first.importance] * 2)
        )


def test_each_bernoulli_twin_masks_a_token_with_its_probability() -> None:
    """At t and at 1 - t; both mask the share eps of the tokens."""
    response = torch.ones(40_000, dtype=torch.bool)
    first, second = draw_twins(response, 0.3, 11, "bernoulli", 0.1)
    expected = [0.9 * 0.3 + 0.1, 0.9 * 0.7 + 0.1]
    shares = [float(noise.masked.float().mean()) for noise in (first, second)]
    assert shares == pytest.approx(expected, abs=0.01)
    both = float((first.masked & second.masked).float().mean())
    assert both == pytest.approx(0.1, abs=0.01)


def bernoulli_moment(count: int, density: LevelDensity) -> float:
    """E of [a given mask of `count` tokens] / p / density: Simpson's rule in each bin."""
    total = 0.0
    for number in range(NUM_BINS):
        middle = (number + 0.5) / NUM_BINS
        for part, rule in ((0.0, 1), (0.25, 4), (0.5, 2), (0.75, 4), (1.0, 1)):
            p = (1 - EPS) * (number + part) / NUM_BINS + EPS
            chance = density.at(middle) / NUM_BINS / 12 * rule
            chance *= p**count * (1 - p) ** (ANSWER - count)
            total += chance / p / density.at(middle)
    return total


def test_the_importance_of_bernoulli_levels_is_unbiased_by_enumeration() -> None:
    """Over all 64 masks, with the chance of each at each level; the weight is that of the code."""
    losses = tabulated_losses(4)
    noise = draw_noise(RESPONSE, 0.6, 5, "bernoulli", EPS, STEEP)
    p = (1 - EPS) * noise.level + EPS
    assert noise.level == STEEP.level(0.6)
    assert noise.weight == pytest.approx(1 / p / STEEP.at(noise.level))
    total = 0.0
    for number, loss in enumerate(losses.tolist()):
        count = bin(number).count("1")
        if count:
            total += loss / ANSWER * bernoulli_moment(count, STEEP)
    assert total == pytest.approx(expectation(losses, "bernoulli"), rel=1e-4)


@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
@DENSITIES
def test_the_mean_of_many_twins_is_the_enumerated_loss(
    masking: Masking, density: LevelDensity | None
) -> None:
    losses = tabulated_losses(1)
    table = losses.tolist()
    samples = []
    for i in range(4_000):
        key = noise_key(0, 0, "shard", i)
        twins = draw_twins(RESPONSE, independent(key), key, masking, EPS, density)
        samples.append(sum(value(noise, table) for noise in twins) / 2)
    error = statistics.stdev(samples) / math.sqrt(len(samples))
    assert abs(statistics.fmean(samples) - expectation(losses, masking)) < 3 * error


def test_twins_of_a_loss_that_grows_with_the_level_cancel() -> None:
    """A loss of 2 t has variance 1/3; the mean of twins is (1 + 1/L) whatever the draw."""
    response = torch.ones(64, dtype=torch.bool)
    means = set()
    for key in range(50):
        twins = draw_twins(response, independent(key), key, "exact")
        # Each masked token has the loss 2 t.
        of_twins = [n.weight * int(n.masked.sum()) * 2 * n.t / 64 for n in twins]
        means.add(round(sum(of_twins) / 2, 12))
    assert means == {round(65 / 64, 12)}


def test_the_draws_of_a_density_are_as_likely_as_it_says() -> None:
    counts = torch.zeros(ANSWER)
    draws = 3_000
    for i in range(draws):
        noise = draw_noise(RESPONSE, (i + 0.5) / draws, i, "exact", density=STEEP)
        counts[int(noise.masked.sum()) - 1] += 1
    expected = [STEEP.chance(k / ANSWER, (k + 1) / ANSWER) for k in range(ANSWER)]
    assert (counts / draws).tolist() == pytest.approx(expected, abs=2 / draws)


def test_masks_do_not_change_with_the_options() -> None:
    """Golden: what a run without twins and density masked before, it masks now."""
    response = torch.arange(12) >= 3
    noise = draw_noise(response, 0.47, 1234, "exact")
    assert noise.masked.nonzero().squeeze(1).tolist() == [5, 7, 8, 9, 11]
    noise = draw_noise(response, 0.47, 1234, "bernoulli")
    assert noise.masked.nonzero().squeeze(1).tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11]
