"""The official sampler through the one interface: the official code's tokens, one batch or many."""

import json
from typing import Any

import pytest
import torch

from llada_sft import generation
from llada_sft.diffusion import generate as plain
from llada_sft.diffusion.generate import generate
from llada_sft.generation import SamplerSettings
from llada_sft.model import Network, load_model
from tests.unit.generation.conftest import FAMILIES, GOLDEN

CASES = [
    pytest.param(name, case, id=f"{name}-{number}")
    for name in FAMILIES[:3]
    for number, case in enumerate(
        json.loads((GOLDEN / name / "generate.json").read_text())["cases"]
    )
]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_official_tokens(name: str, case: dict[str, Any]) -> None:
    model = load_model(GOLDEN / name, torch.float64)
    settings = {key: value for key, value in case.items() if key in vars(SamplerSettings())}
    answers = generation.generate(
        model, case["prompt"], SamplerSettings(mask_token_id=510, **settings)
    )
    assert [answer.ids for answer in answers] == case["output"]
    assert {answer.num_passes for answer in answers} == {case["steps"]}
    assert {answer.num_rows for answer in answers} == {
        case["steps"] * (2 if case.get("cfg_scale") else 1)
    }


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_a_seed_means_what_it_means_in_the_official_code(
    golden: Network, remasking: Any, cfg_scale: float
) -> None:
    chosen: dict[str, Any] = {"temperature": 0.7, "remasking": remasking, "cfg_scale": cfg_scale}
    lengths = {"steps": 4, "gen_length": 8, "block_length": 4}
    prompts = [[3, 4, 5], [6, 7, 8]]
    torch.manual_seed(5)
    ids = generate(golden, torch.tensor(prompts), mask_token_id=510, **lengths, **chosen)
    settings = SamplerSettings(seed=5, **lengths, **chosen)
    answers = generation.generate(golden, prompts, settings)
    assert [answer.ids for answer in answers] == ids[:, 3:].tolist()
    torch.manual_seed(5)
    again = generation.generate(golden, prompts, SamplerSettings(**lengths, **chosen))
    assert again == answers


def test_prompts_of_different_lengths_have_the_answers_of_each_alone(of_family: Network) -> None:
    prompts = [[7, 8, 9, 10, 11], [], [12], [13, 14, 15, 16, 17, 18, 19, 20, 21]]
    settings = SamplerSettings(gen_length=8, block_length=4, mask_token_id=510)
    together = generation.generate(of_family, prompts, settings)
    alone = [generation.generate(of_family, [prompt], settings)[0] for prompt in prompts]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert len({tuple(answer.ids) for answer in together}) > 1


def test_a_mask_token_in_a_prompt_is_filled_in(golden: Network) -> None:
    prompt = [5, 510, 6]
    ids = generate(golden, torch.tensor([prompt]), 4, 8, 4, mask_token_id=510)
    settings = SamplerSettings(steps=4, gen_length=8, block_length=4)
    (answer,) = generation.generate(golden, [prompt], settings)
    assert answer.ids == ids[0, 3:].tolist()


def test_no_prompts_have_no_answers(golden: Network) -> None:
    assert generation.generate(golden, [], SamplerSettings()) == []


def test_a_token_that_the_model_lacks_is_refused(golden: Network) -> None:
    with pytest.raises(ValueError) as error:
        generation.generate(golden, [[1], [2, 512]], SamplerSettings())
    assert str(error.value) == "prompt 1: tokens must be below 512, got 512"


@pytest.mark.parametrize("name", ["mask_token_id", "eos_token_id", "eot_token_id"])
def test_a_special_token_that_the_model_lacks_is_refused(golden: Network, name: str) -> None:
    with pytest.raises(ValueError) as error:
        generation.generate(golden, [[1]], SamplerSettings(**{name: 512}))
    assert str(error.value) == f"{name} must be from 0 to 511, got 512"


def test_the_head_runs_at_masked_positions_of_the_block_alone(golden: Network) -> None:
    numbers = []

    def watch(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        numbers.append(len(kwargs["positions"]))

    hook = golden.register_forward_pre_hook(watch, with_kwargs=True)
    generation.generate(golden, [[1, 2, 3]], SamplerSettings(gen_length=8, block_length=4))
    hook.remove()
    assert numbers == [4, 3, 2, 1] * 2


def test_the_softmax_of_the_plain_function_is_of_candidates_alone(
    golden: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def watched(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        return probability_of(logits, tokens)

    probability_of = plain.probability_of
    monkeypatch.setattr(plain, "probability_of", watched)
    generate(golden, torch.tensor([[1, 2, 3], [4, 5, 6]]), 2, 4, 4, mask_token_id=510)
    assert shapes == [(8, 512), (4, 512)]
