"""Settings that do not fit are refused in one line, without torch."""

from typing import Any

import pytest

from llada_sft.choices import SAMPLERS
from llada_sft.generation.settings import SamplerSettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sampler": "llada3"},
            "sampler must be one of official, threshold, factor, entropy, prefix_cache, "
            "dual_cache, verify, llada2, llada21, got 'llada3'",
        ),
        (
            {"gen_length": 10, "block_length": 4},
            "gen_length must be a multiple of block_length, got 10 and 4",
        ),
        (
            {"steps": 3, "gen_length": 8, "block_length": 4},
            "steps must be a multiple of the number of blocks, got 3 and 2",
        ),
        ({"steps": 0}, "steps must be a whole number above 0, got 0"),
        ({"gen_length": 1.5}, "gen_length must be a whole number above 0, got 1.5"),
        ({"gen_length": True}, "gen_length must be a whole number above 0, got True"),
        ({"gen_length": "many"}, "gen_length must be a whole number above 0, got 'many'"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"eos_token_id": 1.5}, "eos_token_id must be a whole number, got 1.5"),
        ({"eos_early_stop": "no"}, "eos_early_stop must be true or false, got 'no'"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"sampler": "factor", "factor": "1"}, "factor must be a number, got '1'"),
        ({"block_length": -4}, "block_length must be a whole number above 0, got -4"),
        ({"max_drafts": 0}, "max_drafts must be a whole number above 0, got 0"),
        ({"remasking": "none"}, "remasking must be 'low_confidence' or 'random', got 'none'"),
        (
            {"sampler": "threshold", "remasking": "random"},
            "remasking must be 'low_confidence' where tokens are chosen by threshold",
        ),
        (
            {"sampler": "verify", "remasking": "random"},
            "remasking must be 'low_confidence' where tokens are chosen by verify",
        ),
        ({"temperature": -1.0}, "temperature must be from 0 to 10, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be from 0 to 10, got nan"),
        ({"temperature": float("inf")}, "temperature must be from 0 to 10, got inf"),
        ({"cfg_scale": -0.5}, "cfg_scale must be from 0 to 1000, got -0.5"),
        ({"cfg_scale": 1e300}, "cfg_scale must be from 0 to 1000, got 1e+300"),
        ({"sampler": "factor", "factor": -1.0}, "factor must be at least 0, got -1.0"),
        (
            {"sampler": "verify", "temperature": 0.5},
            "temperature must be 0 with the sampler 'verify', got 0.5",
        ),
        ({"sampler": "threshold", "threshold": 1.5}, "threshold must be from 0 to 1, got 1.5"),
        ({"threshold": 0.9}, "threshold is not a setting of the sampler 'official'; remove it"),
        (
            {"sampler": "entropy", "factor": 1.0},
            "factor is not a setting of the sampler 'entropy'; remove it",
        ),
        (
            {"sampler": "threshold", "entropy_bound": 0.1},
            "entropy_bound is not a setting of the sampler 'threshold'; remove it",
        ),
        (
            {"sampler": "threshold", "editing_threshold": 0.9},
            "editing_threshold is not a setting of the sampler 'threshold'; remove it",
        ),
        (
            {"sampler": "llada2", "editing_threshold": 0.9},
            "editing_threshold is not a setting of the sampler 'llada2'; remove it",
        ),
        (
            {"sampler": "llada2", "cfg_scale": 1.0},
            "cfg_scale is not a setting of the sampler 'llada2'; remove it",
        ),
        (
            {"sampler": "llada2", "minimal_topk": 200},
            "minimal_topk must be at most gen_length, 128, got 200",
        ),
        (
            {"sampler": "llada2", "minimal_topk": 0},
            "minimal_topk must be a whole number above 0, got 0",
        ),
        (
            {"sampler": "llada21", "steps": 8},
            "steps is not a setting of the sampler 'llada21'; remove it",
        ),
        (
            {"sampler": "llada21", "temperature": 1.0},
            "temperature must be 0 with the sampler 'llada21', got 1.0",
        ),
        (
            {"sampler": "llada21", "max_post_steps": -1},
            "max_post_steps must be a whole number from 0 on, got -1",
        ),
        (
            {"sampler": "llada21", "eos_in_prompt_ends": True},
            "eos_in_prompt_ends is not a setting of the sampler 'llada21'; remove it",
        ),
        (
            {"cache_blocks": True},
            "cache_blocks is not a setting of the sampler 'official'; remove it",
        ),
        ({"start_length": 32}, "start_length needs eos_early_stop with the sampler 'official'"),
        (
            {"sampler": "threshold", "eos_early_stop": False, "start_length": 32},
            "start_length needs eos_early_stop with the sampler 'threshold'",
        ),
        (
            {"sampler": "threshold", "start_length": 33},
            "start_length must be a multiple of block_length, 32, up to gen_length, 128, got 33",
        ),
        (
            {"sampler": "threshold", "start_length": 160},
            "start_length must be a multiple of block_length, 32, up to gen_length, 128, got 160",
        ),
        (
            {"sampler": "threshold", "growth_threshold": -0.1},
            "growth_threshold must be from 0 to 1, got -0.1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        SamplerSettings(**given)
    assert str(error.value) == message


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_has_defaults(sampler: Any) -> None:
    settings = SamplerSettings(sampler=sampler)
    assert settings.exact == (sampler in ("official", "verify"))
    assert settings.stops_at_eos != settings.exact
    assert settings.steps_per_block == settings.block_length


def test_what_tokens_are_chosen_by() -> None:
    def choice(sampler: Any, **given: Any) -> tuple[str, float]:
        return SamplerSettings(sampler=sampler, **given).choice

    assert choice("official") == choice("verify") == choice("dual_cache") == ("fixed", 0)
    assert choice("threshold") == ("threshold", 0.9)
    assert choice("threshold", threshold=0.0) == ("threshold", 0)
    assert choice("threshold", threshold=0.5, factor=2.0) == ("factor", 2)
    assert choice("factor") == ("factor", 1)
    assert choice("llada2") == choice("llada21") == ("above", 0.95)
    assert choice("entropy") == ("entropy", 0.1)
    assert choice("prefix_cache", threshold=0.5) == ("threshold", 0.5)
    assert choice("dual_cache", entropy_bound=0.0) == ("entropy", 0)
