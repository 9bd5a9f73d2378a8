"""Verified drafts: the official sampler's tokens, in fewer passes one after another."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_sft.generation import SamplerSettings, generate
from llada_sft.model import Network, load_model
from tests.unit.generation.conftest import GOLDEN
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


@torch.no_grad()
def rounding_of(model: Network, ids: Tensor) -> float:
    """Return how much a logit of a state differs between it alone and in larger batches, at most.

    It is at least one unit in the last place.
    """
    alone = model(ids).logits
    unit = torch.finfo(alone.dtype).eps * float(alone.abs().max())
    others = [model(ids.repeat(size, 1)).logits[:1] for size in (2, 3, 4, 6, 8)]
    return max(unit, *(float((alone.double() - other.double()).abs().max()) for other in others))


class Margins:
    """What the official sampler's decisions hang on, in a prompt's passes.

    Attributes:
        smallest: The smallest difference, in logits, between a token that was written and the next
            one at its place, or, in log-probability, between the last candidate that was taken and
            the first one that was not.
    """

    def __init__(self, share: int) -> None:
        self._share, self.smallest = share, math.inf

    def __call__(self, _: object, __: Any, output: Any) -> None:
        logits = output.logits.double()
        best = logits.topk(2).values
        confidence = best[:, 0] - logits.logsumexp(-1)
        ordered, order = confidence.sort(descending=True)
        taken = order[: self._share]
        gaps = [(best[taken, 0] - best[taken, 1]).min()]
        if len(ordered) > self._share:
            gaps.append(ordered[self._share - 1] - ordered[self._share])
        self.smallest = min(self.smallest, *map(float, gaps))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "at_least"), [(torch.float32, 40), (torch.bfloat16, 3)], ids=["fp32", "bf16"]
)
def test_the_tokens_are_the_official_ones_where_decisions_are_clear(
    dtype: torch.dtype, at_least: int
) -> None:
    """Where the best candidates differ by more than twice what a larger batch rounds otherwise."""
    model = load_model(GOLDEN / "tiny_llada", dtype)
    draw, num_clear = random.Random(0), 0
    for seed in range(60):
        prompt = [draw.randrange(511) for _ in range(1 + seed % 12)]
        sizes = {"gen_length": 8, "block_length": 8, "steps": 4}
        margins = Margins(share=2)
        hook = model.register_forward_hook(margins)
        (official,) = generate(model, [prompt], SamplerSettings(**sizes))
        hook.remove()
        (answer,) = generate(model, [prompt], SamplerSettings("verify", max_drafts=8, **sizes))
        rounding = rounding_of(model, torch.tensor([[*prompt, *[510] * 8]]))
        if margins.smallest > 2 * rounding:
            num_clear += 1
            assert answer.ids == official.ids, seed
    assert num_clear >= at_least
