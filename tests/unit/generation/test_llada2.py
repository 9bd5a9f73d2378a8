"""The samplers of LLaDA2.0 and 2.1 against the released code, and with their cache."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_sft.generation import Answer, SamplerSettings, generate
from llada_sft.model import Network, load_model
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.cache import KeyValueCache
from tests.unit.generation.conftest import GOLDEN
from tests.unit.generation.counting import counted

NAMES = ("tiny_llada2_moe", "tiny_llada2_moe_b")
FILES = {"llada2": "generate.json", "llada21": "generate_llada21.json"}
SAMPLERS = tuple(FILES)
MASK = 510
GIVEN = (
    "block_length",
    "steps",
    "gen_length",
    "threshold",
    "eos_early_stop",
    "minimal_topk",
    "editing_threshold",
    "max_post_steps",
    "num_to_transfer",
)
both_samplers = pytest.mark.parametrize("sampler", SAMPLERS)


def network(name: str, dtype: torch.dtype = torch.float64) -> Network:
    return load_model(GOLDEN / name, dtype)


@pytest.fixture(scope="module")
def in_blocks() -> Network:
    return network("tiny_llada2_moe")


def settings_of(sampler: str, **given: Any) -> SamplerSettings:
    usual = {"gen_length": 20, "block_length": 8, "threshold": 0.2, "mask_token_id": MASK}
    if sampler == "llada21":
        usual |= {"editing_threshold": 0.15, "max_post_steps": 3}
    return SamplerSettings(**{"sampler": sampler, **usual, **given})


def prompts_of(*lengths: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(500) for _ in range(length)] for length in lengths]


def result(answer: Answer) -> tuple[list[int], int, int]:
    return answer.ids, answer.num_passes, answer.num_rows


@pytest.mark.slow
@both_samplers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_passes_are_those_of_the_released_code(
    name: str, dtype: torch.dtype, sampler: str
) -> None:
    model = network(name, dtype)
    cases = json.loads((GOLDEN / name / FILES[sampler]).read_text())["cases"]
    assert len(cases) == (22 if sampler == "llada2" else 18)
    for number, case in enumerate(cases):
        given = {key: case[key] for key in GIVEN if key in case}
        for cached in (True, False):
            settings = settings_of(
                sampler, **given, eos_token_id=case["eos_id"], cache_blocks=cached
            )
            (answer,) = generate(model, case["prompt"], settings)
            assert answer.ids == case["output"][0], (number, cached)
            assert answer.num_passes == case["forward_passes"], (number, cached)


@both_samplers
@pytest.mark.parametrize("eos", [505, 191, 375])
def test_a_batch_gives_what_each_prompt_gives_alone_with_and_without_cache(
    in_blocks: Network, sampler: str, eos: int
) -> None:
    """Prompts with 0, 1 and block - 1 tokens after their last block, and an empty one."""
    prompts = prompts_of(8, 9, 15, 0, 30, 3)
    settings = settings_of(sampler, eos_token_id=eos)
    together = generate(in_blocks, prompts, settings)
    uncached = generate(
        in_blocks, prompts, settings_of(sampler, eos_token_id=eos, cache_blocks=False)
    )
    assert [*map(result, together)] == [*map(result, uncached)]
    for prompt, answer in zip(prompts, together, strict=True):
        assert result(generate(in_blocks, [prompt], settings)[0]) == result(answer)


@pytest.mark.slow
@both_samplers
def test_40_random_prompts_and_settings_have_the_same_tokens_with_the_cache(
    in_blocks: Network, sampler: str
) -> None:
    num_ended = 0
    for seed in range(40):
        draw = random.Random(seed)
        prompts = prompts_of(*(draw.randrange(20) for _ in range(draw.randrange(1, 4))))
        given: dict[str, Any] = {
            "gen_length": draw.randrange(1, 25),
            "block_length": draw.choice([1, 3, 4, 8]),
            "threshold": draw.choice([0.05, 0.2, 0.95]),
            "eos_token_id": draw.choice([191, 375, 430, 359]),
            "eos_early_stop": draw.choice([True, False]),
        }
        if sampler == "llada21":
            given |= {"num_to_transfer": draw.choice([1, 3])}
        cached = generate(in_blocks, prompts, settings_of(sampler, **given))
        plain = generate(in_blocks, prompts, settings_of(sampler, **given, cache_blocks=False))
        assert [*map(result, cached)] == [*map(result, plain)], seed
        num_ended += sum(given["eos_token_id"] in answer.ids for answer in cached)
    assert num_ended > 20


@both_samplers
def test_the_cache_computes_one_block_in_most_passes(in_blocks: Network, sampler: str) -> None:
    settings = settings_of(sampler, threshold=0.95, max_post_steps=None, editing_threshold=None)
    with counted(in_blocks) as passes:
        generate(in_blocks, prompts_of(21), settings)
    widths = [ids.shape[1] for ids in passes]
    # The prompt with its last block first; a new block together with the one before it.
    assert widths[0] == 24 and widths.count(16) == 3
    assert set(widths[1:]) == {8, 16}


def test_an_eos_in_the_prompt_ends_the_answer_only_as_in_the_released_code(
    in_blocks: Network,
) -> None:
    """Two prompts that differ in their first token, which is an EOS in one of them."""
    prompt = [391, *prompts_of(9)[0]]
    given = {"gen_length": 24, "threshold": 0.2, "eos_early_stop": True}
    (first,) = generate(in_blocks, [prompt], settings_of("llada2", **given, eos_token_id=505))
    eos = first.ids[4]
    with_eos = [eos, *prompt[1:]]
    (answer,) = generate(in_blocks, [with_eos], settings_of("llada2", **given, eos_token_id=eos))
    assert answer.ids and answer.ids.index(eos) == len(answer.ids) - 1
    settings = settings_of("llada2", **given, eos_token_id=eos, eos_in_prompt_ends=True)
    assert generate(in_blocks, [with_eos], settings)[0].ids == []
    (alone,) = generate(in_blocks, [prompt], settings)
    assert alone.ids


@both_samplers
def test_the_mask_token_is_never_written_and_every_answer_ends(
    in_blocks: Network, sampler: str
) -> None:
    """The network predicts nothing but the mask token."""

    def favour_mask(_: object, __: Any, output: Any) -> None:
        output.logits[:, MASK] += 100.0

    hook = in_blocks.register_forward_hook(favour_mask)
    try:
        answers = generate(in_blocks, prompts_of(5, 16), settings_of(sampler, eos_token_id=505))
    finally:
        hook.remove()
    for answer in answers:
        assert MASK not in answer.ids and (len(answer.ids) == 20 or answer.ids[-1] == 505)


def test_editing_stops_after_its_passes(in_blocks: Network) -> None:
    """A network that always wants another token than the one that is there."""

    def want_the_next(_: object, args: Any, kwargs: Any, output: Any) -> None:
        ids = args[0].flatten()[kwargs["positions"]]
        output.logits.fill_(0.0)
        output.logits[torch.arange(len(ids)), (ids + 1) % 500] = 100.0

    settings = settings_of(
        "llada21", gen_length=8, max_post_steps=5, threshold=0.5, eos_token_id=505
    )
    hook = in_blocks.register_forward_hook(want_the_next, with_kwargs=True)
    try:
        (answer,) = generate(in_blocks, [[]], settings)
    finally:
        hook.remove()
    # One pass writes all eight tokens, (510 + 1) % 500; each of five more replaces all of them.
    assert answer.num_passes == 6 and answer.ids == [11 + 5] * 8


def test_a_block_is_finished_when_nothing_is_left_to_edit(in_blocks: Network) -> None:
    """A network that is sure of the same token everywhere."""

    def want_seven(_: object, __: Any, output: Any) -> None:
        output.logits.fill_(0.0)
        output.logits[:, 7] = 100.0

    hook = in_blocks.register_forward_hook(want_seven)
    try:
        settings = settings_of("llada21", gen_length=16, max_post_steps=5, eos_token_id=505)
        (answer,) = generate(in_blocks, [[]], settings)
    finally:
        hook.remove()
    # Of each block: a pass that writes it, and one that changes nothing.
    assert answer.ids == [7] * 16 and answer.num_passes == 4


def test_a_temperature_draws_tokens(in_blocks: Network) -> None:
    def answer(seed: int) -> list[int]:
        settings = settings_of("llada2", temperature=1.0, seed=seed, eos_token_id=505)
        return generate(in_blocks, prompts_of(5), settings)[0].ids

    assert answer(1) == answer(1) != answer(2)


@torch.no_grad()
def test_a_cache_that_grew_gives_the_logits_of_whole_rows(in_blocks: Network) -> None:
    ids = torch.tensor(prompts_of(24, 24))
    blocks = Blocks(8)
    whole: Tensor = in_blocks(ids, blocks=blocks).logits
    cache = KeyValueCache(in_blocks.architecture.num_layers)
    in_blocks(ids[:, :8], cache=cache, blocks=blocks)
    for start in (8, 16):
        cache.grow(start + 8)
        places = torch.arange(start, start + 8).expand(2, -1)
        part = in_blocks(ids[:, start : start + 8], cache=cache, places=places, blocks=blocks)
        torch.testing.assert_close(part.logits, whole[:, start : start + 8], atol=1e-9, rtol=0)


def test_a_sampler_is_refused_that_attends_otherwise_than_the_network(
    in_blocks: Network, golden: Network
) -> None:
    with pytest.raises(ValueError) as error:
        generate(in_blocks, [[1]], SamplerSettings("threshold"))
    assert str(error.value) == (
        "sampler must be one of llada2, llada21, got 'threshold': this network attends in blocks"
    )
    with pytest.raises(ValueError) as error:
        generate(golden, [[1]], SamplerSettings("llada21"))
    assert str(error.value) == (
        "sampler must be one of official, threshold, factor, entropy, prefix_cache, dual_cache,"
        " verify, got 'llada21': this network has full attention (no decodes_in_blocks in its"
        " config.json)"
    )


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_llada_moe", "tiny_dream"])
@both_samplers
def test_other_members_decode_in_blocks_if_their_config_says_so(name: str, sampler: str) -> None:
    """Also one that predicts the next token: the position before a block is computed with it."""
    model = network(name)
    config = model.config.changed(decodes_in_blocks=True)
    model.architecture = config.architecture
    settings = settings_of(sampler, threshold=0.05, eos_token_id=131, gen_length=30)
    prompts = prompts_of(8, 9, 0, 23)
    cached = generate(model, prompts, settings)
    plain = generate(model, prompts, replace(settings, cache_blocks=False))
    assert [*map(result, cached)] == [*map(result, plain)]
    # The smallest number of blocks, each of which is computed at least once.
    assert all(answer.num_passes >= 4 for answer in cached if len(answer.ids) == 30)
