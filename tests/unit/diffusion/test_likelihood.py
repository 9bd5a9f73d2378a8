"""Validation noise is fixed and stratified; the likelihood bound is the known one."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from llada_sft.diffusion.likelihood import log_likelihood, validation_noise

MASK = 9


def test_draws_are_stratified_and_the_same_every_time() -> None:
    response = torch.arange(30) >= 10
    draws = [validation_noise(response, 5, i, 4) for i in range(4)]
    again = [validation_noise(response, 5, i, 4) for i in range(4)]
    assert all(torch.equal(a.masked, b.masked) for a, b in zip(draws, again, strict=True))
    quarters = [math.ceil(4 * noise.t) for noise in draws]
    assert sorted(quarters) in ([1, 2, 3, 4], [2, 3, 4, 5])


def test_a_uniform_network_gives_minus_length_times_ln_vocabulary() -> None:
    def uniform(input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 16))

    response = torch.arange(12) >= 4
    ids = torch.arange(12) % 8
    assert log_likelihood(uniform, ids, response, 6, MASK, batch_size=4) == pytest.approx(
        -8 * math.log(16), rel=1e-6
    )


def test_the_bound_is_the_mean_over_orders() -> None:
    """Two tokens; the second is certain once the first is seen, and even otherwise.

    Half of the terms (l = 2, weight 1): ln 2 for each token. The others (l = 1, weight 2): 0 if the
    first is seen, ln 2 if the second is seen: on average ln 2. In all (2 ln 2 + ln 2) / 2.
    """

    def network(input_ids: Tensor) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, 2)
        logits[:, 1, 1] = 40.0 * (input_ids[:, 0] != MASK)
        return SimpleNamespace(logits=logits)

    ids = torch.tensor([1, 1])
    estimate = log_likelihood(
        network, ids, torch.ones(2, dtype=torch.bool), 2000, MASK, batch_size=500
    )
    assert estimate == pytest.approx(-1.5 * math.log(2), rel=0.03)


def test_the_prompt_and_a_literal_mask_token_are_left_alone() -> None:
    seen = []

    def network(input_ids: Tensor) -> SimpleNamespace:
        seen.append(input_ids)
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 16))

    ids = torch.tensor([3, MASK, 4, 5])
    response = torch.tensor([False, False, True, True])
    value = log_likelihood(network, ids, response, 4, MASK)
    assert all(torch.equal(x[:, :2], ids[:2].expand(len(x), -1)) for x in seen)
    assert value == pytest.approx(-2 * math.log(16), rel=1e-6)
