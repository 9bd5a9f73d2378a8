"""Which prompts are answered, by which rank, and what is logged of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus
from llada_sft.training.log.answers_log import AnswersLog
from llada_sft.training.log.tensorboard import TensorBoardLog
from llada_sft.training.validation.answers import Answers, HeldOutPrompt, choose_questions
from llada_sft.training.validation.rows import ValidationSet
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import EOS, MASK, TABLE, VOCAB, example

IDS = TokenIds(VOCAB, EOS, MASK)


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


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_makes_as_many_passes_and_has_all_answers(world_size: int) -> None:
    questions = [HeldOutPrompt("", f"a:{n}", (n,) * (n + 1), (n, 7, EOS)) for n in range(3)]
    # Without masks and ends: what is predicted depends on the place alone.
    place = torch.randn(20, VOCAB, generator=torch.Generator().manual_seed(1))
    place[:, MASK] = -9

    def counted(rank: int, consensus: Consensus) -> Any:
        calls: list[int] = []

        def predict(ids: Tensor) -> Tensor:
            calls.append(1)
            return place[: ids.shape[1]][None] + TABLE[ids[0, 0]]

        where = Placement(rank, world_size, rank, 0, "localhost", 1)
        answers = Answers(questions, 4, Digits(), IDS, where, consensus)
        return answers.answer(predict, torch.device("cpu")), len(calls)

    results = on_ranks(world_size, counted)
    assert {calls for _, calls in results} == {4 * -(-3 // world_size)}
    logged = results[0][0]
    assert all(answers == logged for answers, _ in results)
    assert [(one.row, one.prompt, one.reference) for one in logged] == [
        ("a:0", "0", "07"),
        ("a:1", "11", "17"),
        ("a:2", "222", "27"),
    ]
    assert all(str(EOS) not in one.answer for one in logged)


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
