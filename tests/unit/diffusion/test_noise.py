"""Keyed noise: what is masked, with which weight, and that both estimators are unbiased."""

import itertools
import math
import statistics
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llada_sft.choices import Masking
from llada_sft.diffusion.noise import (
    Noise,
    draw_noise,
    independent,
    low_discrepancy,
    noise_key,
    step_shift,
)
from llada_sft.keys import hashed
from tests.unit.diffusion.enumeration import (
    ANSWER,
    EPS,
    expectation,
    mask_index,
    tabulated_losses,
)


def test_keys_depend_on_every_part() -> None:
    parts = [(0, 0, "a", 1, 0), (1, 0, "a", 1, 0), (0, 1, "a", 1, 0), (0, 0, "b", 1, 0)]
    parts += [(0, 0, "a", 2, 0), (0, 0, "a", 1, 1), (0, 0, "a1", 1, 0), (0, 0, "a", 11, 0)]
    keys = {noise_key(*p) for p in parts}
    assert len(keys) == len(parts)
    assert all(0 <= key < 2**64 for key in keys)


def test_keys_are_the_same_on_every_machine() -> None:
    """Golden: a changed key would silently change the noise of every run that is resumed."""
    assert noise_key(7, 2, "shard_003.jsonl", 41) == 13265560022483711424
    assert step_shift(7, 100) == 0.47729932987747103


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    draw_noise(torch.ones(9, dtype=torch.bool), 0.3, 5, "bernoulli")
    assert torch.equal(before, torch.random.get_rng_state())


@given(shift=st.floats(0, 1, exclude_max=True), index=st.integers(0, 10**15))
def test_low_discrepancy_is_exact_however_far_the_index(shift: float, index: int) -> None:
    golden_ratio = Fraction(0x9E3779B97F4A7C15, 2**64)
    exact = (Fraction(shift) + index * golden_ratio) % 1
    distance = abs(Fraction(low_discrepancy(shift, index)) - exact)
    assert min(distance, 1 - distance) < Fraction(1, 2**52)


def test_low_discrepancy_spreads_a_batch_evenly() -> None:
    levels = sorted(low_discrepancy(0.123, i) for i in range(256))
    gaps = [b - a for a, b in itertools.pairwise([*levels, levels[0] + 1])]
    assert max(gaps) < 2.7 / 256


@given(
    prompt=st.integers(0, 5),
    answer=st.integers(1, 40),
    u=st.floats(0, 1, exclude_max=True),
    key=st.integers(0, 2**64 - 1),
)
def test_exact_masks_a_counted_part_of_the_response(
    prompt: int, answer: int, u: float, key: int
) -> None:
    response = torch.arange(prompt + answer) >= prompt
    noise = draw_noise(response, u, key, "exact")
    count = int(noise.masked.sum())
    assert count == 1 + math.floor(u * answer)
    assert noise.weight == answer / count
    assert noise.t == count / answer
    assert not noise.masked[:prompt].any()
    assert torch.equal(noise.masked, draw_noise(response, u, key, "exact").masked)


def test_bernoulli_masks_with_probability_p_and_never_the_prompt() -> None:
    response = torch.arange(40_000) >= 10_000
    noise = draw_noise(response, 0.3, 11, "bernoulli", eps=0.1)
    p = 0.9 * 0.3 + 0.1
    assert noise.weight == 1 / p
    assert noise.t == 0.3
    assert not noise.masked[:10_000].any()
    assert float(noise.masked.sum()) / 30_000 == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
def test_an_example_without_response_is_refused(masking: Masking) -> None:
    with pytest.raises(ValueError, match="without response tokens"):
        draw_noise(torch.zeros(4, dtype=torch.bool), 0.5, 0, masking)


# --- Unbiased


def standard_errors_off(
    losses: Tensor, masking: Masking, draw: Callable[[int], Noise], num_draws: int = 20_000
) -> float:
    table = losses.tolist()
    samples = []
    for i in range(num_draws):
        noise = draw(i)
        samples.append(noise.weight * table[mask_index(noise.masked)] / ANSWER)
    error = statistics.stdev(samples) / math.sqrt(num_draws)
    off: float = abs(statistics.fmean(samples) - expectation(losses, masking)) / error
    return off


RESPONSE = torch.ones(ANSWER, dtype=torch.bool)


@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
@pytest.mark.parametrize("sampling", ["low_discrepancy", "independent"])
def test_the_mean_of_many_draws_is_the_enumerated_loss(masking: Masking, sampling: str) -> None:
    def draw(i: int) -> Noise:
        key = noise_key(0, 0, "shard", i)
        spread = low_discrepancy(step_shift(0, i // 64), i % 64)
        u = spread if sampling == "low_discrepancy" else independent(key)
        return draw_noise(RESPONSE, u, key, masking, EPS)

    assert standard_errors_off(tabulated_losses(1), masking, draw) < 3


def _without_eps(u: float, key: int) -> Noise:
    noise = draw_noise(RESPONSE, u, key, "bernoulli", EPS)
    return Noise(noise.masked, noise.t, weight=1 / max(u, 1e-3))


def _never_empty(u: float, key: int) -> Noise:
    while not (noise := draw_noise(RESPONSE, u, key, "bernoulli", EPS)).masked.any():
        key = hashed(key)
    return noise


def _weight_of_t(u: float, key: int) -> Noise:
    noise = draw_noise(RESPONSE, u, key, "exact")
    return Noise(noise.masked, noise.t, weight=1 / max(u, 1 / ANSWER))


@pytest.mark.parametrize(
    ("masking", "biased"),
    [("bernoulli", _without_eps), ("bernoulli", _never_empty), ("exact", _weight_of_t)],
)
def test_a_biased_estimator_shows(masking: Masking, biased: Callable[[float, int], Noise]) -> None:
    def draw(i: int) -> Noise:
        key = noise_key(0, 0, "shard", i)
        return biased(independent(key), key)

    assert standard_errors_off(tabulated_losses(1), masking, draw) > 5


# --- Variance


def batch_loss(masking: Masking, batch: int, spread: bool, num_sequences: int = 256) -> float:
    """Toy: the cross-entropy is twice the masked fraction; the more is hidden, the harder."""
    response = torch.ones(128, dtype=torch.bool)
    total = 0.0
    for i in range(num_sequences):
        key = noise_key(3, 0, "shard", batch * num_sequences + i)
        u = low_discrepancy(step_shift(3, batch), i) if spread else independent(key)
        noise = draw_noise(response, u, key, masking)
        fraction = int(noise.masked.sum()) / 128
        total += noise.weight * fraction * 2 * fraction
    return total / num_sequences


@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
def test_low_discrepancy_lowers_the_variance_of_a_batch_fivefold(masking: Masking) -> None:
    variance = {
        spread: statistics.variance(batch_loss(masking, b, spread) for b in range(40))
        for spread in (False, True)
    }
    assert variance[False] > 5 * variance[True]
