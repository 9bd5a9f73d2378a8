"""Likelihoods of the golden network: the official numbers, whatever is scored together."""

import math
from typing import Any

import pytest
import torch

from llada_sft.diffusion.likelihood import log_likelihood
from llada_sft.evaluation import scoring
from llada_sft.evaluation.scoring import (
    AnswerInContext,
    ScoringSettings,
    are_greedy,
    log_likelihoods,
)
from llada_sft.model import Network, load_model
from tests.unit.evaluation.conftest import GOLDEN

NUMBER_OF_CASES = 8


def request_of(case: dict[str, Any]) -> AnswerInContext:
    return AnswerInContext(tuple(case["prefix"]), tuple(case["target"]))


@pytest.fixture(scope="module")
def unguided(official: dict[str, Any]) -> list[dict[str, Any]]:
    return [case for case in official["loglikelihood"] if case["cfg"] == 0]


@pytest.mark.parametrize("number", range(NUMBER_OF_CASES))
def test_bounds_are_the_official_ones(
    golden: Network, official: dict[str, Any], number: int
) -> None:
    """Those by enumeration, where given: the official frequencies of l are biased."""
    assert len(official["loglikelihood"]) == NUMBER_OF_CASES
    case = official["loglikelihood"][number]
    settings = ScoringSettings(cfg_scale=case["cfg"])
    (bound,) = log_likelihoods(golden, [request_of(case)], settings)
    assert bound.standard_error is not None
    if "exact" in case:
        assert abs(bound.value - case["exact"]) <= 3 * bound.standard_error + 1e-4
        assert bound.standard_error <= case["std_of_one_value"] + 1e-9
    else:
        error = math.hypot(bound.standard_error, case["standard_error"])
        assert abs(bound.value - case["mean"]) <= 3 * error
    if len(case["target"]) <= 6:
        # Enumerated; fp32 cross-entropy.
        assert bound.value == pytest.approx(case["exact"], rel=1e-5)


def test_greedy_answers_are_the_official_ones(golden: Network, official: dict[str, Any]) -> None:
    for cfg_scale in (0.0, 0.5):
        cases = [case for case in official["loglikelihood"] if case["cfg"] == cfg_scale]
        settings = ScoringSettings(cfg_scale=cfg_scale)
        greedy = are_greedy(golden, [request_of(case) for case in cases], settings)
        assert greedy == [case["is_greedy"] for case in cases]


@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_neither_the_batch_nor_the_order_changes_a_bound(
    golden: Network, unguided: list[dict[str, Any]], max_tokens: int
) -> None:
    requests = [request_of(case) for case in unguided]
    alone = [log_likelihoods(golden, [request], ScoringSettings(24))[0] for request in requests]
    settings = ScoringSettings(24, max_tokens=max_tokens)
    together = log_likelihoods(golden, requests[::-1], settings)[::-1]
    for one, other in zip(alone, together, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6)
        assert one.standard_error == pytest.approx(other.standard_error, rel=1e-6)


def test_large_logits_are_computed_in_pieces(
    golden: Network, unguided: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request_of(case) for case in unguided]
    together = log_likelihoods(golden, requests, ScoringSettings(8))
    monkeypatch.setattr(scoring, "_LOGITS_BYTES", 3 * 4 * 512)
    apart = log_likelihoods(golden, requests, ScoringSettings(8))
    assert [one.value for one in apart] == pytest.approx([one.value for one in together], rel=1e-6)


def test_another_seed_draws_other_masks(golden: Network, unguided: list[dict[str, Any]]) -> None:
    requests = [request_of(case) for case in unguided if len(case["target"]) == 20]
    first, second = (log_likelihoods(golden, requests, ScoringSettings(8, seed=s)) for s in (0, 1))
    assert first[0].value != second[0].value


def test_answers_of_one_length_share_their_masks(golden: Network) -> None:
    """The difference of two answers that share most tokens has a smaller error for it."""
    generator = torch.Generator().manual_seed(0)
    context, answer = (
        tuple(torch.randint(500, (n,), generator=generator).tolist()) for n in (8, 12)
    )
    other = (*answer[:-1], (answer[-1] + 1) % 500)
    shared, apart = [], []
    for seed in range(30):
        ours, theirs = log_likelihoods(
            golden,
            [AnswerInContext(context, answer), AnswerInContext(context, other)],
            ScoringSettings(24, seed=seed),
        )
        (unshared,) = log_likelihoods(
            golden, [AnswerInContext(context, other)], ScoringSettings(24, seed=seed + 1000)
        )
        shared.append(ours.value - theirs.value)
        apart.append(ours.value - unshared.value)
    assert torch.tensor(shared).std() < 0.75 * torch.tensor(apart).std()


def test_it_is_the_same_bound_as_that_of_one_answer(
    golden: Network, unguided: list[dict[str, Any]]
) -> None:
    case = next(case for case in unguided if len(case["target"]) == 5)
    ids = torch.tensor(case["prefix"] + case["target"])
    response = torch.arange(len(ids)) >= len(case["prefix"])
    value = log_likelihood(golden, ids, response, 128, golden.config.mask_token_id)
    (bound,) = log_likelihoods(golden, [request_of(case)], ScoringSettings())
    assert value == pytest.approx(bound.value, rel=1e-6)


def test_an_empty_answer_is_certain_and_an_empty_context_is_none(golden: Network) -> None:
    requests = [AnswerInContext((1, 2), ()), AnswerInContext((), (3, 4))]
    empty, alone = log_likelihoods(golden, requests, ScoringSettings())
    assert (empty.value, empty.standard_error) == (0.0, 0.0)
    ids = torch.tensor([3, 4])
    value = log_likelihood(golden, ids, torch.ones(2, dtype=torch.bool), 128, 510)
    assert alone.value == pytest.approx(value, rel=1e-6)
    assert are_greedy(golden, requests, ScoringSettings())[0] is True


def test_a_mask_token_in_a_text_is_a_token_like_others(golden: Network) -> None:
    """It is neither masked again nor counted."""
    mask = golden.config.mask_token_id
    (bound,) = log_likelihoods(golden, [AnswerInContext((mask, 5), (7,))], ScoringSettings())
    logits = golden(torch.tensor([[mask, 5, mask]])).logits[0, 2].detach().float()
    assert bound.value == pytest.approx(float(logits.log_softmax(-1)[7]), rel=1e-5)


@pytest.mark.parametrize("family", ["tiny_llada_moe", "tiny_llada_moe_shared", "tiny_dream"])
def test_networks_of_each_family_are_scored(family: str) -> None:
    model = load_model(GOLDEN / family, torch.float64)
    requests = [AnswerInContext((3, 4, 5), (6, 7, 8)), AnswerInContext((9,), (10, 11))]
    bounds = log_likelihoods(model, requests, ScoringSettings(mask_token_id=510))
    for request, bound in zip(requests, bounds, strict=True):
        ids = torch.tensor([*request.context, *request.answer])
        response = torch.arange(len(ids)) >= len(request.context)
        value = log_likelihood(model, ids, response, 128, 510)
        assert bound.value == pytest.approx(value, rel=1e-6)


def test_a_model_without_a_mask_token_is_told() -> None:
    model = load_model(GOLDEN / "tiny_llada_moe")
    with pytest.raises(ValueError, match="mask_token_id must be given"):
        log_likelihoods(model, [AnswerInContext((1,), (2,))], ScoringSettings())
