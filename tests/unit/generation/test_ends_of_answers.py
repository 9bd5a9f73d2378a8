"""The official code's options that keep EOS away, against that code's steps written out plainly."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llada_sft.generation import SamplerSettings, generate
from llada_sft.model import Network

MASK, EOS, EOT = 510, 137, 410
PROMPTS = [[1, 2, 3, 4, 5], [7, 8], [100, 200, 300]]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"logits_eos_inf": True},
    {"confidence_eos_eot_inf": True},
    {"logits_eos_inf": True, "confidence_eos_eot_inf": True},
]


@pytest.fixture
def ending(golden: Network) -> Iterator[Network]:
    """A network to which EOS or the end of a turn is the likeliest token at many positions."""

    def favour(_: object, __: Any, output: Any) -> None:
        output.logits[..., [EOS, EOT]] += 5.0

    hook = golden.register_forward_hook(favour)
    yield golden
    hook.remove()


@torch.no_grad()
def plainly(model: Network, prompt: list[int], options: dict[str, Any]) -> list[int]:
    """Write the most confident token of each step: 12 tokens in two blocks of 6."""
    ids = torch.tensor([[*prompt, *[MASK] * 12]])
    for step in range(12):
        end = len(prompt) + (6 if step < 6 else 12)
        logits = model(ids, positions=torch.arange(ids.shape[1])).logits
        if options.get("logits_eos_inf"):
            logits[:, EOS] = -torch.inf
        tokens = logits.argmax(-1)
        if options.get("confidence_eos_eot_inf"):
            logits[:, [EOS, EOT]] = -torch.inf
        chances = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
        chances[ids[0] != MASK] = -torch.inf
        chances[end:] = -torch.inf
        best = chances.topk(1).indices
        ids[0, best] = tokens[best]
    return ids[0, len(prompt) :].tolist()


def answers(model: Network, sampler: str, options: dict[str, Any]) -> list[list[int]]:
    settings = SamplerSettings(
        sampler=sampler,  # type: ignore[arg-type]
        gen_length=12,
        block_length=6,
        eos_token_id=EOS,
        eot_token_id=EOT,
        **options,
    )
    return [answer.ids for answer in generate(model, PROMPTS, settings)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sampler", ["official", "verify"])
def test_the_tokens_are_those_of_the_official_steps(
    ending: Network, sampler: str, options: dict[str, Any]
) -> None:
    expected = [plainly(ending, prompt, options) for prompt in PROMPTS]
    assert answers(ending, sampler, options) == expected
    has_eos = any(EOS in ids for ids in expected)
    assert has_eos != ("logits_eos_inf" in options)


def test_the_options_change_the_tokens(ending: Network) -> None:
    usual, never, last, _ = [answers(ending, "official", options) for options in OPTIONS]
    assert usual != never and usual != last and never != last


@pytest.mark.parametrize("sampler", ["threshold", "factor", "dual_cache", "prefix_cache"])
def test_other_samplers_have_them_too(ending: Network, sampler: str) -> None:
    usual = answers(ending, sampler, {})
    never = answers(ending, sampler, {"logits_eos_inf": True})
    assert any(EOS in ids for ids in usual)
    assert not any(EOS in ids for ids in never) and all(len(ids) == 12 for ids in never)
    assert answers(ending, sampler, {"confidence_eos_eot_inf": True}) != usual


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sampler": "entropy", "confidence_eos_eot_inf": True},
            "confidence_eos_eot_inf is for tokens that are chosen by their confidence",
        ),
        (
            {"remasking": "random", "confidence_eos_eot_inf": True},
            "confidence_eos_eot_inf is for tokens that are chosen by their confidence",
        ),
        (
            {"sampler": "threshold", "start_length": 32, "logits_eos_inf": True},
            "start_length must not be given with logits_eos_inf: no EOS is probable then",
        ),
        (
            {"sampler": "llada2", "logits_eos_inf": True},
            "logits_eos_inf is not a setting of the sampler 'llada2'; remove it",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        SamplerSettings(**given)
    assert str(error.value) == message
