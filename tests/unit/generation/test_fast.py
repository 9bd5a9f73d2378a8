"""Parallel decoding and caches against the numbers of their authors' code, in float64."""

import json
from typing import Any

import pytest

from llada_sft.generation import SamplerSettings, generate
from llada_sft.model import Network
from tests.unit.generation.conftest import GOLDEN
from tests.unit.generation.counting import counted

CASES = json.loads((GOLDEN / "tiny_llada" / "fast_generate.json").read_text())["cases"]
SAMPLERS = {
    "generate_with_prefix_cache": "prefix_cache",
    "generate_with_dual_cache": "dual_cache",
}


def sampler_of(case: dict[str, Any]) -> Any:
    without_cache = "threshold" if "threshold" in case or "factor" in case else "official"
    return SAMPLERS.get(case["function"], without_cache)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_tokens_and_forward_passes(golden: Network, number: int) -> None:
    case = CASES[number]
    names = ("steps", "gen_length", "block_length", "threshold", "factor")
    given = {name: case[name] for name in names if name in case}
    settings = SamplerSettings(sampler=sampler_of(case), **given)
    with counted(golden) as passes:
        answers = generate(golden, case["prompt"], settings)
    assert [answer.ids for answer in answers] == case["output"]
    assert len(passes) == case["forward_passes"]
    assert sum(answer.ids.count(510) for answer in answers) == case["masks_left"]
    if len(answers) == 1:
        assert answers[0].num_passes == len(passes)
