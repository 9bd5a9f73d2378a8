"""Which prompts are answered, by which rank, and what is logged of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llada_sft.config.schema import Config
from llada_sft.config.sections.validation import ValidationConfig
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.errors import ConfigError
from llada_sft.generation import SamplerSettings, generate
from llada_sft.model import Network, load_model
from llada_sft.model.configuration import read_config
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus
from llada_sft.training.log.answers_log import AnswersLog
from llada_sft.training.log.tensorboard import TensorBoardLog
from llada_sft.training.validation.answers import (
    Answers,
    HeldOutPrompt,
    WritingOrder,
    answer_pieces,
    choose_questions,
)
from llada_sft.training.validation.build import sampler_settings
from llada_sft.training.validation.rows import ValidationSet
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import example


def test_questions_are_spread_over_all_sets() -> None:
    sets = [
        ValidationSet(name, [example(prompt, 2, line) for line in range(1, 5)])
        for name, prompt in (("a", 2), ("b", 3))
    ]
    rows = [(each.set_name, each.row) for each in choose_questions(sets, 4, 9)]
    assert rows == [("a", "a:1"), ("a", "a:3"), ("b", "a:1"), ("b", "a:3")]
    assert [each.set_name for each in choose_questions(sets, 99, longest_prompt=2)] == ["a"] * 4
    assert choose_questions(sets, 3, longest_prompt=1) == []


def test_a_question_ends_where_the_first_response_begins() -> None:
    mask = np.array([False, False, True, True, False, True])
    row = replace(example(2, 4), response_mask=mask)
    (question,) = choose_questions([ValidationSet("", [row])], 1, 9)
    assert question.prompt_ids == tuple(row.input_ids[:2].tolist())
    assert question.reference_ids == tuple(row.input_ids[2:4].tolist())


class Digits:
    """A tokenizer whose tokens are digits."""

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(str(int(one)) for one in ids)


@pytest.fixture(scope="module")
def network() -> Network:
    return load_model(Path(__file__).parents[3] / "golden/tiny_llada", torch.float64)


@pytest.mark.parametrize("sampler", ["official", "threshold", "dual_cache", "verify"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_makes_as_many_passes_and_has_all_answers(
    network: Network, world_size: int, sampler: Any
) -> None:
    """Their answers differ in length, and with four ranks one has no prompt."""
    ids = TokenIds(512, 409, 510)
    questions = [HeldOutPrompt("", f"a:{n}", (n,) * (n + 1), (n, 7, 409)) for n in range(3)]
    settings = SamplerSettings(sampler, gen_length=12, block_length=6, eos_token_id=409)
    alone = [generate(network, [question.prompt_ids], settings)[0] for question in questions]
    if sampler == "threshold":
        assert len({answer.num_passes for answer in alone}) > 1

    def counted(rank: int, consensus: Consensus) -> Any:
        calls: list[int] = []

        def forward(arguments: dict[str, Any]) -> Tensor:
            calls.append(1)
            logits: Tensor = network(arguments.pop("input_ids"), **arguments).logits
            return logits

        where = Placement(rank, world_size, rank, 0, "localhost", 1)
        answers = Answers(questions, settings, Digits(), ids, where, consensus)
        return answers.answer(network, forward), len(calls)

    results = on_ranks(world_size, counted)
    of_ranks = [sum(one.num_passes for one in alone[r::world_size]) for r in range(world_size)]
    assert [calls for _, calls in results] == [max(of_ranks)] * world_size
    logged = results[0][0]
    assert all(answers == logged for answers, _ in results)
    assert [(one.row, one.prompt, one.reference) for one in logged] == [
        ("a:0", "0", "07"),
        ("a:1", "11", "17"),
        ("a:2", "222", "27"),
    ]
    shown = ["".join(map(str, answer.ids)).split("409")[0] for answer in alone]
    assert [one.answer for one in logged] == shown
    for one, answer in zip(logged, alone, strict=True):
        assert "".join(text for text, _ in one.tokens) == one.answer
        assert one.num_passes == answer.num_passes
        assert all(1 <= number <= answer.num_passes for _, number in one.tokens)


def test_the_order_of_writing_is_that_of_the_passes() -> None:
    """The official sampler writes one token in each pass; another one replaces a token later."""
    mask, order = 9, WritingOrder()
    order.watch([[mask, mask, mask]])
    order.watch([[mask, 4, mask]])
    order.watch([[3, 4, mask]])
    assert order.close([3, 5, 6]) == [2, 3, 3]


def test_an_answer_may_grow_and_end_early() -> None:
    mask, order = 9, WritingOrder()
    order.watch([[mask, mask]])
    order.watch([[1, 2, mask, mask]])
    assert order.close([1, 2, 7]) == [1, 1, 2]


class HalfCharacters:
    """A tokenizer of bytes: token 5 and 6 are é together."""

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        texts = {1: b"a", 5: b"\xc3", 6: b"\xa9", 7: b""}
        return b"".join(texts[int(one)] for one in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("tokens", "passes", "expected"),
    [
        ((1, 5, 6, 1, 7), (4, 3, 1, 2, 5), (("a", 4), ("é", 3), ("a", 2))),
        ((5, 1), (1, 2), (("\ufffd", 1), ("a", 2))),
        ((7,), (1,), ()),
    ],
)
def test_a_character_of_several_tokens_is_one_piece(
    tokens: tuple[int, ...], passes: tuple[int, ...], expected: Any
) -> None:
    assert tuple(answer_pieces(HalfCharacters().decode, tokens, passes)) == expected


def test_the_sampler_fits_the_network() -> None:
    def settings(golden: str, **given: Any) -> SamplerSettings:
        config = read_config(Path(__file__).parents[3] / "golden" / golden, mask_token=510)
        return sampler_settings(with_validation(**given), config, TokenIds(512, 505, 510))

    assert settings("tiny_llada").sampler == "official"
    assert settings("tiny_llada", answer_length=20).block_length == 20
    found = settings("tiny_llada2_moe", answer_length=20)
    assert (found.sampler, found.block_length, found.gen_length) == ("llada2", 32, 20)
    with pytest.raises(ConfigError) as error:
        settings("tiny_llada2_moe", sampler="threshold")
    assert str(error.value) == (
        "validation.sampler: must be one of llada2, llada21, got 'threshold': this network attends"
        " in blocks"
    )


def with_validation(**given: Any) -> Config:
    section = ValidationConfig(**given)
    return Config.model_construct(validation=section)


ANSWER = {"set": "", "row": "a:1", "prompt": "a\n# b", "reference": "c", "answer": "<b>"}


def test_a_resumed_run_continues_the_file(tmp_path: Path) -> None:
    path = tmp_path / "logs/answers.jsonl"
    log = AnswersLog(path, 0)
    for step in (2, 4, 6):
        log.log(step, [ANSWER], [])
    with path.open("a") as file:
        file.write('{"step": 6, "half a li')
    AnswersLog(path, 4).log(6, [{**ANSWER, "answer": "é"}], [])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["answer"]) for line in lines] == [(2, "<b>"), (4, "<b>"), (6, "é")]


def test_tensorboard_shows_texts_as_they_are(tmp_path: Path) -> None:
    texts: list[tuple[str, str, int]] = []

    class Log(TensorBoardLog):
        def log_text(self, tag: str, text: str, step: int) -> None:
            texts.append((tag, text, step))

    AnswersLog(tmp_path / "a", 0).log(3, [ANSWER], [Log(tmp_path), object()])
    ((tag, text, step),) = texts
    assert (tag, step) == ("answers/1", 3)
    assert "\n    a\n    # b\n" in text


def test_a_full_disk_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("not a folder")
    AnswersLog(tmp_path / "logs/a", 0).log(3, [ANSWER], [])
    assert capsys.readouterr().err.startswith("warning: step 3: answers: not logged: ")
