"""Answers are kept as they come: a kill loses none, and another request gets none of them."""

import json
from pathlib import Path

import pytest

from llada_sft.answering.answers_file import AnswersFile, require_new
from llada_sft.errors import ConfigError, DataError


def row(number: int) -> dict[str, object]:
    return {"number": number, "answer": f"\N{SNOWMAN}{number}"}


def test_the_answers_of_all_ranks_come_in_the_order_of_the_questions(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    file = AnswersFile(out)
    file.begin({"seed": 1})
    file.writer(1)([row(3), row(1)])
    file.writer(0)([row(2)])
    file.writer(0)([row(0)])
    file.finish(file.wait_for(4))
    answers = [json.loads(line)["answer"] for line in out.read_text().splitlines()]
    assert answers == [f"\N{SNOWMAN}{number}" for number in range(4)]
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("cut", [2, 5, 20])
def test_a_row_that_a_kill_cut_is_none_and_harms_no_other(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "answers.jsonl"
    file = AnswersFile(out)
    file.begin({})
    file.writer(0)([row(0), row(1)])
    part = tmp_path / "answers.jsonl.partial/rank_0.jsonl"
    part.write_bytes(part.read_bytes()[:-cut])
    again = AnswersFile(out)
    again.begin({})
    assert set(again.known()) == {0}
    again.writer(0)([row(1), row(2)])
    assert set(again.known()) == {0, 1, 2}


def test_another_request_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    file = AnswersFile(out)
    file.begin({"seed": 1, "model": "m"})
    file.writer(0)([row(0)])
    with pytest.raises(ConfigError) as caught:
        AnswersFile(out).begin({"seed": 2, "model": "m"})
    assert str(caught.value) == (
        f"--out: {out}.partial has answers of another request: seed was 1, is 2; remove it to begin"
        " afresh, or name another --out"
    )
    assert set(file.known()) == {0}


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    (tmp_path / "answers.jsonl.partial").mkdir()
    (tmp_path / "answers.jsonl.partial/request.json").write_text("{")
    with pytest.raises(ConfigError, match=r"\.partial: .*; remove it to begin afresh$"):
        AnswersFile(out).begin({})


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        require_new(out)


def test_lone_surrogates_stay_json(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    file = AnswersFile(out)
    file.begin({})
    file.writer(0)([{"number": 0, "record": "\ud800"}])
    file.finish(file.known())
    assert json.loads(out.read_text()) == {"record": "\ud800"}


def test_an_answer_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = AnswersFile(tmp_path / "answers.jsonl")
    file.begin({})
    part = tmp_path / "answers.jsonl.partial/rank_0.jsonl"
    part.mkdir()
    with pytest.raises(DataError) as error:
        file.writer(0)([row(0)])
    assert str(error.value) == (
        f"{part}: cannot be written: Is a directory; the same command continues here"
    )
