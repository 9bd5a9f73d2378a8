"""Verified drafts: the official sampler's tokens, in fewer passes one after another."""

import random
from typing import Any

import pytest
import torch

from llada_sft.generation import SamplerSettings, generate
from llada_sft.model import Network
from tests.unit.generation.counting import counted

SHAPES = [(16, 16, 16), (16, 8, 16), (16, 4, 8), (12, 12, 4), (24, 8, 6), (8, 8, 16)]


def random_case(seed: int) -> tuple[list[list[int]], dict[str, Any]]:
    """Return one to three prompts, one of which may have a mask token, and settings."""
    draw = random.Random(seed)
    prompts = [
        [draw.randrange(511) for _ in range(draw.randrange(12))] for _ in range(seed % 3 + 1)
    ]
    gen_length, block_length, steps = draw.choice(SHAPES)
    more: dict[str, Any] = {"cfg_scale": 1.5} if seed % 7 == 0 else {}
    if seed % 2:
        more |= {"eos_early_stop": True, "eos_token_id": draw.choice([137, 410, 142, 409, 285])}
    sizes = {"gen_length": gen_length, "block_length": block_length, "steps": steps}
    return prompts, sizes | more


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_the_tokens_are_the_official_ones(golden: Network, part: int) -> None:
    """500 random prompts and settings, in float64."""
    num_calls, num_official = 0, 0
    for seed in range(100 * part, 100 * part + 100):
        prompts, given = random_case(seed)
        official = generate(golden, prompts, SamplerSettings(**given))
        drafts = 1 + seed % 9
        settings = SamplerSettings(sampler="verify", max_drafts=drafts, **given)
        with counted(golden) as passes:
            answers = generate(golden, prompts, settings)
        assert [answer.ids for answer in answers] == [answer.ids for answer in official], seed
        num_calls += len(passes)
        num_official += max(answer.num_passes for answer in official)
    assert num_calls < num_official


def test_rows_and_passes_are_counted(golden: Network) -> None:
    prompts = [[1, 2, 3], [4]]
    settings = SamplerSettings(sampler="verify", gen_length=16, block_length=8)
    with counted(golden) as passes:
        answers = generate(golden, prompts, settings)
    assert sum(len(ids) for ids in passes) == sum(answer.num_rows for answer in answers)
    assert max(answer.num_passes for answer in answers) <= len(passes)
    assert min(answer.num_rows for answer in answers) >= 16


def test_a_network_whose_order_never_changes_needs_few_passes(golden: Network) -> None:
    """With the same logits in every state, all guesses are right."""
    fixed = torch.randn(64, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def same(_: object, args: Any, kwargs: Any, output: Any) -> Any:
        ids, positions = args[0], kwargs["positions"]
        output.logits = fixed[positions % ids.shape[1]]
        return output

    hook = golden.register_forward_hook(same, with_kwargs=True)
    try:
        settings = SamplerSettings(sampler="verify", gen_length=32, block_length=32, max_drafts=8)
        (answer,) = generate(golden, [[1, 2, 3]], settings)
        (official,) = generate(golden, [[1, 2, 3]], SamplerSettings(gen_length=32))
    finally:
        hook.remove()
    assert answer.ids == official.ids
    # 1, 2, 4, 8, 8, 8, and what is left.
    assert answer.num_passes == 7 and answer.num_rows == 32
