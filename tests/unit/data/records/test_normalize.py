"""What hooks get: one form for all formats, cut to the answer that is learned."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.record_formats import MultiTurn, RecordFormat
from llada_sft.data.records.formats import RecordRules
from llada_sft.data.records.normalize import RecordReader, row_key
from llada_sft.data.records.turns import choose_answers
from llada_sft.errors import DataError


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


TURNS = [
    turn("system", "s"),
    turn("user", "a"),
    turn("assistant", "b"),
    turn("user", "c"),
    turn("assistant", ""),
    turn("user", "e"),
    turn("assistant", "f"),
    turn("user", "g"),
]


@pytest.mark.parametrize(
    ("multi_turn", "key", "length", "marked"),
    [
        ("last", 0, 7, []),
        ("last", 1, 7, []),
        # Two answers can be learned: the turns 2 and 6.
        ("random", 0, 3, []),
        ("random", 1, 7, []),
        ("random", 2**64 - 2, 3, []),
        ("all", 1, 7, [2, 6]),
    ],
)
def test_which_answers_are_learned(
    multi_turn: MultiTurn, key: int, length: int, marked: list[int]
) -> None:
    before = repr(TURNS)
    chosen = choose_answers(TURNS, multi_turn, key)
    assert [number for number, one in enumerate(chosen) if one.get("learn")] == marked
    assert [turn(one["role"], one["content"]) for one in chosen] == TURNS[:length]
    assert repr(TURNS) == before


@pytest.mark.parametrize("multi_turn", ["last", "random", "all"])
@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (TURNS[:2], "no turn is the assistant's; a record needs a response"),
        (
            [turn("assistant", "a"), turn("user", "b")],
            "the conversation starts with the assistant; a record needs a prompt",
        ),
        (
            [turn("user", "a"), turn("assistant", " \n"), turn("user", "b")],
            "the last turn of the assistant is empty; a record needs a response",
        ),
    ],
)
def test_a_conversation_without_an_answer(
    multi_turn: MultiTurn, turns: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        choose_answers(turns, multi_turn, 5)
    assert str(caught.value) == message


def test_an_empty_last_answer_is_not_replaced_by_an_earlier_one() -> None:
    turns = [*TURNS[:4], turn("assistant", " ")]
    with pytest.raises(DataError):
        choose_answers(turns, "last", 0)
    assert choose_answers(turns, "random", 7) == TURNS[:3]


PAIR = [turn("user", "a"), turn("assistant", "b")]


@pytest.mark.parametrize(
    ("record_format", "record", "expected"),
    [
        ("messages", {"messages": [*PAIR, TURNS[1]], "id": 7}, {"messages": PAIR, "id": 7}),
        (
            "prompt_response",
            {"prompt": "a", "response": "b", "id": 7},
            {"messages": PAIR, "prompt": "a", "response": "b", "id": 7},
        ),
        (
            "prompt_response",
            {"prompt": "a", "response": "b", "system": "s"},
            {"messages": [TURNS[0], *PAIR], "prompt": "a", "response": "b"},
        ),
        ("text", {"text": "a", "id": 7}, {"text": "a", "id": 7}),
        ("text", {"text": "a", "prompt": "b", "response": "c", "id": 7}, {"text": "a", "id": 7}),
        ("raw", {"messages": TURNS}, {"messages": TURNS}),
        ("raw", [1], [1]),
        ("auto", {"instruction": "a", "output": "b"}, None),
        ("auto", {"question": "a"}, {"question": "a"}),
        ("auto", [1], [1]),
    ],
)
def test_what_a_hook_gets(record_format: RecordFormat, record: Any, expected: object) -> None:
    if expected is None:
        expected = record | {"messages": PAIR}
    before = repr(record)
    assert RecordReader(record_format)(record, 5) == expected
    assert repr(record) == before


def test_names_are_the_usual_ones_behind_the_reader() -> None:
    reader = RecordReader("text", RecordRules({"text": "body"}))
    assert reader({"body": "a", "id": 7}, 5) == {"text": "a", "body": "a", "id": 7}
    reader = RecordReader(
        "messages", RecordRules({"messages": "dialog", "role": "who", "system": "rules"})
    )
    record = {"dialog": [{"who": "user", "content": "a"}, {"who": "assistant", "content": "b"}]}
    assert reader({**record, "rules": "s"}, 5) == {
        **record,
        "rules": "s",
        "messages": [TURNS[0], *PAIR],
    }


def test_the_key_is_of_the_row_and_the_epoch() -> None:
    keys = [
        row_key(seed, epoch, file, line)
        for seed in (0, 1)
        for epoch in (0, 1)
        for file in ("a", "b")
        for line in (1, 2, 11, 12)
    ]
    assert len(set(keys)) == len(keys)
    # Golden: another key would change the data of a run that goes on.
    assert row_key(3, 1, "a.jsonl", 7) == GOLDEN_KEY
    assert row_key(1, 11, "a", 1) != row_key(11, 1, "a", 1)


GOLDEN_KEY = 5036568759467356864


@given(num_answers=st.integers(1, 6), line=st.integers(1, 10**9))
def test_epochs_draw_every_answer_about_equally_often(num_answers: int, line: int) -> None:
    turns = [turn("user", "a"), turn("assistant", "b")] * num_answers
    lengths = Counter(
        len(choose_answers(turns, "random", row_key(0, epoch, "a.jsonl", line)))
        for epoch in range(600)
    )
    assert set(lengths) == {2 * number + 2 for number in range(num_answers)}
    # Seven standard deviations of the binomial distribution.
    expected = 600 / num_answers
    allowed = 7 * (expected * (1 - 1 / num_answers)) ** 0.5
    assert all(abs(count - expected) <= allowed for count in lengths.values())
