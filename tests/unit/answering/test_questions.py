"""Rows of every kind become what is asked, and the last answer its reference."""

import gzip
import json
from pathlib import Path

import pytest

from llada_sft.answering.questions import Question, read_questions, require_no_problems
from llada_sft.errors import DataError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def read(folder: Path, *records: object, **options: object) -> list[Question]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return read_questions(path, **{"fields": {}, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "reference"),
    [
        ("q", None),
        ({"prompt": "q"}, None),
        ({"prompt": "q", "response": None}, None),
        ({"prompt": "q", "response": "a"}, "a"),
        ({"question": "q"}, None),
        ({"question": "q", "answer": "a"}, "a"),
        ({"instruction": "q"}, None),
        ({"instruction": "q", "output": ""}, None),
        ({"instruction": "q", "output": "a"}, "a"),
        ({"messages": [USER]}, None),
        ({"messages": [USER, ANSWER]}, "a"),
        ({"conversations": [{"from": "human", "value": "q"}]}, None),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            "a",
        ),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, None),
    ],
    ids=str,
)
def test_a_record_is_asked_without_its_answer(
    tmp_path: Path, record: object, reference: str | None
) -> None:
    (question,) = read(tmp_path, record)
    assert question.problem is None
    assert [dict(turn) for turn in question.turns] == [USER]
    assert (question.line, question.record, question.reference) == (1, record, reference)


def test_the_turns_before_the_last_answer_are_the_prompt(tmp_path: Path) -> None:
    turns = [USER, ANSWER, {"role": "user", "content": "more"}, ANSWER]
    (question,) = read(tmp_path, {"messages": turns})
    assert list(question.turns) == turns[:3]


def test_an_input_belongs_to_its_instruction(tmp_path: Path) -> None:
    (question,) = read(tmp_path, {"instruction": "add", "input": "1 2"})
    assert question.turns[-1]["content"] == "add\n\n1 2"


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    fields = {"prompt": "ask", "response": "say"}
    questions = read(tmp_path, {"ask": "q"}, {"ask": "q", "say": "a"}, fields=fields)
    assert [question.reference for question in questions] == [None, "a"]
    assert all(list(question.turns) == [USER] for question in questions)


def test_a_system_prompt_is_for_rows_without_one(tmp_path: Path) -> None:
    own = {"role": "system", "content": "own"}
    questions = read(tmp_path, "q", {"messages": [USER]}, {"messages": [own, USER]}, system="given")
    firsts = [question.turns[0]["content"] for question in questions]
    assert firsts == ["given", "given", "own"]


def test_texts_and_ids_are_continued(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        {"text": "Once"},
        {"input_ids": [1, 2]},
        {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]},
    )
    assert rows[0].text == "Once"
    assert [(row.ids, row.reference) for row in rows[1:]] == [([1, 2], None), ([1, 2], [3])]


def test_bad_rows_are_named_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    answer = '{"messages": [{"role": "assistant", "content": "a"}]}'
    path.write_text(f'"q"\n\n{{"prompt": 3}}\n{{broken\n{answer}\n""\n[1]\n')
    questions = read_questions(path, {})
    assert [question.problem is None for question in questions] == [True] + [False] * 5
    with pytest.raises(DataError) as raised:
        require_no_problems(path, questions)
    lines = str(raised.value).splitlines()
    assert [line.removeprefix(f"{path}:").split(":")[0] for line in lines[:-1]] == [
        *("3", "4", "5", "6", "7")
    ]
    assert lines[2:4] == [
        f"{path}:5: it has an answer, and nothing that is asked",
        f"{path}:6: the text is empty",
    ]
    assert lines[-1] == f"{path}: correct them, or give --skip-bad: then they get no answer"


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    questions = read(tmp_path, *[3] * 14)
    with pytest.raises(DataError, match="4 more rows like these"):
        require_no_problems(tmp_path / "prompts.jsonl", questions)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"q\n", "must end in"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as raised:
        read_questions(tmp_path / name, {})
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        read_questions(tmp_path / "none.jsonl", {})


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'"q"\n'))
    (question,) = read_questions(tmp_path / "a.jsonl.gz", {})
    assert list(question.turns) == [USER]
