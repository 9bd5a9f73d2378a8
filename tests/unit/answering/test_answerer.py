"""Answers of a tiny random network: in the order of the prompts, cut at the first EOS."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.answering.answerer import Answerer, answer
from llada_sft.answering.questions import Question, said_by_user
from llada_sft.data.records.chat_tokens import encode_prompt
from llada_sft.diffusion import generate as official
from llada_sft.errors import CheckpointError, ConfigError, DataError
from llada_sft.generation import Answer, SamplerSettings
from llada_sft.model import Network

PROMPTS = ["reverse abcd", "reverse ab", "reverse efgh", "a", "reverse cd"]
SETTINGS = SamplerSettings(steps=4, gen_length=8, block_length=4)


def test_answers_come_in_the_order_of_their_prompts(model: Network, tokenizer: Any) -> None:
    together = answer(model, tokenizer, PROMPTS, SETTINGS)
    alone = [answer(model, tokenizer, [prompt], SETTINGS)[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 1
    assert answer(model, tokenizer, PROMPTS[::-1], SETTINGS) == together[::-1]


def test_an_answer_is_what_the_sampler_says(model: Network, tokenizer: Any) -> None:
    ids = encode_prompt(said_by_user("reverse abcd"), tokenizer)
    output = official.generate(
        model,
        torch.tensor([ids]),
        steps=4,
        gen_length=8,
        block_length=4,
        mask_token_id=tokenizer.mask_token_id,
    )
    said = output[0, len(ids) :].tolist()
    if tokenizer.eos_token_id in said:
        said = said[: said.index(tokenizer.eos_token_id)]
    expected = tokenizer.decode(said, skip_special_tokens=True)
    assert answer(model, tokenizer, ["reverse abcd"], SETTINGS) == [expected]


def test_no_prompts_have_no_answers(model: Network, tokenizer: Any) -> None:
    assert answer(model, tokenizer, [], SETTINGS) == []


@pytest.mark.parametrize(
    ("said", "expected", "ended"),
    [
        (["c", "b", "<|endoftext|>", "a", "<|endoftext|>"], "cb", True),
        (["<|endoftext|>", "a"], "", True),
        (["c", "b", "a"], "cba", False),
        (["c", "<|eot_id|>", " ", "a"], "c a", False),
    ],
)
def test_an_answer_ends_at_the_first_eos(
    model: Network, tokenizer: Any, said: list[str], expected: str, ended: bool
) -> None:
    ids = tokenizer.convert_tokens_to_ids(said)
    answered = Answerer(model, tokenizer, SETTINGS).read(
        Answer(ids, 4, 4, batch_size=1, device="cpu")
    )
    assert (answered.text, answered.ended, answered.num_passes) == (expected, ended, 4)
    assert answered.ids == ids[: ids.index(tokenizer.eos_token_id)] if ended else ids


def test_drawn_answers_depend_on_their_key_alone(model: Network, tokenizer: Any) -> None:
    settings = SamplerSettings(steps=4, gen_length=8, block_length=4, temperature=2.0)
    answerer = Answerer(model, tokenizer, settings, batch_size=3)
    prompts = [encode_prompt(said_by_user(text), tokenizer) for text in PROMPTS]

    def answers(numbers: list[int]) -> dict[int, list[int]]:
        batches = answerer.answers([prompts[n] for n in numbers], numbers)
        return {numbers[place]: one.ids for batch in batches for place, one in batch}

    together = answers([0, 1, 2, 3, 4])
    assert answers([3, 1]) == {number: together[number] for number in (3, 1)}
    answerer.seed = 1
    assert answers([0, 1, 2, 3, 4]) != together


def test_a_prompt_that_leaves_no_room_is_refused(model: Network, tokenizer: Any) -> None:
    answerer = Answerer(model, tokenizer, SETTINGS)
    assert answerer.max_prompt == 56
    assert len(answerer.prompt_ids(Question(1, None, ids=[3] * 56))) == 56
    with pytest.raises(DataError, match="57 tokens: with an answer of up to 8"):
        answerer.prompt_ids(Question(1, None, ids=[3] * 57))


@pytest.mark.parametrize("token", [10**6, -1])
def test_tokens_that_the_model_lacks_are_refused(
    model: Network, tokenizer: Any, token: int
) -> None:
    with pytest.raises(DataError) as error:
        Answerer(model, tokenizer, SETTINGS).prompt_ids(Question(1, None, ids=[3, token, 4]))
    assert str(error.value) == f"tokens must be from 0 to {len(tokenizer) - 1}, got {token}"


def test_plain_text_is_continued_after_bos(model: Network, tokenizer: Any) -> None:
    ids = Answerer(model, tokenizer, SETTINGS).prompt_ids(Question(1, None, text="abc"))
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    assert ids == [*begin, *tokenizer.convert_tokens_to_ids(["a", "b", "c"])]


@pytest.mark.parametrize("sampler", ["official", "threshold", "entropy", "dual_cache", "verify"])
def test_what_the_model_suppresses_is_never_said(
    model: Network, tokenizer: Any, sampler: Any
) -> None:
    settings = SamplerSettings(sampler, gen_length=8, block_length=4)
    said = answer(model, tokenizer, PROMPTS, settings)
    used = sorted({tokenizer.convert_tokens_to_ids(letter) for text in said for letter in text})
    assert used
    model.config.suppress_tokens = (used[0], used[-1])
    try:
        again = answer(model, tokenizer, PROMPTS, settings)
    finally:
        model.config.suppress_tokens = ()
    banned = set(tokenizer.convert_ids_to_tokens([used[0], used[-1]]))
    assert banned & set("".join(said)) and not banned & set("".join(again))


def test_a_sampler_of_another_attention_is_refused_before_weights_are_read() -> None:
    golden = Path(__file__).parents[2] / "golden"
    with pytest.raises(ConfigError) as error:
        Answerer.load(golden / "tiny_llada2_moe", SETTINGS, 1, 0, 0)
    assert str(error.value) == (
        "--sampler: must be one of llada2, llada21, got 'official': this network attends in blocks"
    )
    with pytest.raises(ConfigError, match=r"--sampler: must be one of official, .*full attention"):
        Answerer.load(golden / "tiny_llada", SamplerSettings("llada2"), 1, 0, 0)


def test_the_sampler_knows_the_end_of_a_turn(model: Network, tokenizer: Any) -> None:
    settings = Answerer(model, tokenizer, SETTINGS).seeded(5)
    assert settings.seed == 5
    assert settings.eot_token_id == tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_a_model_without_eos_is_one_line(model_dir: Path, tmp_path: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text()) | {"eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = replace(SETTINGS, eos_early_stop=True)
    with pytest.raises(CheckpointError) as error:
        Answerer.load(tmp_path, settings, 1, 0, 0)
    path = tmp_path / "config.json"
    assert str(error.value) == f"{path}: eos_token_id: must be given, got null: answers need it"
