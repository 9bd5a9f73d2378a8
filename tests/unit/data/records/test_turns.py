"""Turns that say how they are learned: never, or with which weight."""

from typing import Any

import pytest

from llada_sft.config.record_formats import MultiTurn
from llada_sft.data.records.formats import RecordRules
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.records.turns import NothingToLearnError, answers_to_learn, loss_weights
from llada_sft.errors import DataError


def user(text: str = "q", **fields: object) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def bot(text: str = "a", **fields: object) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


NO = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"training": False},
    {"trainable": False},
    {"learn": False},
    {"loss": False},
    {"loss": 0},
    {"weight": 0, "train": False},
]
YES: list[dict[str, Any]] = [
    {},
    {"weight": 1},
    {"weight": None, "train": None},
    {"weight": 0.5},
    {"train": True},
    {"loss": 1},
    {"weight": 2, "learn": True},
]


@pytest.mark.parametrize("no", NO, ids=str)
@pytest.mark.parametrize("yes", YES, ids=str)
@pytest.mark.parametrize("style", ["messages", "sharegpt"])
def test_what_is_not_to_be_learned_is_never_drawn(
    no: dict[str, Any], yes: dict[str, Any], style: str
) -> None:
    turns = [user(), bot("bad", **no), user(), bot("good", **yes), user(), bot("worse", **no)]
    if style == "sharegpt":
        turns = [{"from": one.pop("role"), "value": one.pop("content"), **one} for one in turns]
    record = {"messages" if style == "messages" else "conversations": turns}
    drawn: list[tuple[MultiTurn, int]] = [
        ("last", 0),
        ("all", 0),
        *(("random", n) for n in range(9)),
    ]
    for multi_turn, key in drawn:
        read: Any = RecordReader("auto", RecordRules(), multi_turn)(record, key)
        messages = read["messages"]
        assert [messages[number]["content"] for number in answers_to_learn(messages)] == ["good"]
        # The hook sees the fields as they are in the row.
        assert messages[1].items() >= {**no, "learn": False}.items()
        assert loss_weights(messages)[3] == (yes.get("weight") or 1)


@pytest.mark.parametrize("multi_turn", ["random", "last", "all"])
@pytest.mark.parametrize("no", NO, ids=str)
def test_a_row_without_an_answer_to_learn_is_left_out(
    multi_turn: MultiTurn, no: dict[str, Any]
) -> None:
    record = {"messages": [user(), bot(**no), user(), bot("", **no)]}
    with pytest.raises(NothingToLearnError):
        RecordReader("messages", RecordRules(), multi_turn)(record, 0)
    # Also by a hook that gets the row as it is.
    with pytest.raises(NothingToLearnError):
        answers_to_learn(record["messages"])


def test_a_row_of_two_answers_draws_among_those_to_learn() -> None:
    turns = [user(), bot("a"), user(), bot("b", weight=0), user(), bot("c", weight=3)]
    reader = RecordReader("messages", RecordRules(), "random")
    read: list[Any] = [reader({"messages": turns}, key) for key in range(4)]
    assert [one["messages"][-1]["content"] for one in read] == ["a", "c", "a", "c"]
    everything: Any = RecordReader("messages", RecordRules(), "all")({"messages": turns}, 0)
    assert answers_to_learn(everything["messages"]) == [1, 5]


def test_rows_that_say_nothing_have_no_marks() -> None:
    turns = [user(), bot(), user(), bot("b")]
    for multi_turn in ("random", "last"):
        read: Any = RecordReader("messages", RecordRules(), multi_turn)({"messages": turns}, 1)  # type: ignore[arg-type]
        assert read == {"messages": turns}


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (bot(weight="0"), "'messages[1].weight' must be a number from 0 to 1e+30, got '0'"),
        (bot(weight=-1), "'messages[1].weight' must be a number from 0 to 1e+30, got -1"),
        (bot(weight=1e31), "'messages[1].weight' must be a number from 0 to 1e+30, got 1e+31"),
        (bot(weight=True), "'messages[1].weight' must be a number from 0 to 1e+30, got True"),
        (bot(weight=[0]), "'messages[1].weight' must be a number from 0 to 1e+30, got [0]"),
        (bot(train="no"), "'messages[1].train' must be true or false, got 'no'"),
        (bot(loss=0.5), "'messages[1].loss' must be true or false, got 0.5"),
        (
            bot(weight=1, train=False),
            "'messages[1]' says both 'weight': 1 and 'train': false; keep one",
        ),
        (
            bot(weight=0, loss=True),
            "'messages[1]' says both 'weight': 0 and 'loss': true; keep one",
        ),
        (
            user(train=True),
            "'messages[1].train' is true, but that turn is not an answer: "
            "the assistant's, with text, after another turn",
        ),
        (
            user(weight=1),
            "'messages[1].weight' is 1, but that turn is not an answer: "
            "the assistant's, with text, after another turn",
        ),
        (
            bot(" ", weight=1),
            "'messages[1].weight' is 1, but that turn is not an answer: "
            "the assistant's, with text, after another turn",
        ),
    ],
)
def test_what_a_turn_says_wrongly(turn: dict[str, Any], message: str) -> None:
    for multi_turn in ("random", "last", "all"):
        reader = RecordReader("messages", RecordRules(), multi_turn)  # type: ignore[arg-type]
        with pytest.raises(DataError) as caught:
            reader({"messages": [user(), turn, user(), bot("b")]}, 0)
        assert str(caught.value) == message


def test_a_user_may_say_that_he_is_not_learned() -> None:
    turns = [user(weight=0, train=False, loss=None), bot("b", weight=1)]
    read: Any = RecordReader("messages", RecordRules(), "random")({"messages": turns}, 0)
    assert answers_to_learn(read["messages"]) == [1]


def test_answers_of_a_prompt_and_of_a_history() -> None:
    prompt = [user(), bot("shown"), user()]
    record: dict[str, Any] = {"prompt": prompt, "completion": [bot("a"), user(), bot("b")]}
    for key in range(8):
        read: Any = RecordReader("auto", RecordRules(), "random")(record, key)
        assert answers_to_learn(read["messages"]) == [[3], [5]][key % 2]
    everything: Any = RecordReader("auto", RecordRules(), "all")(record, 0)
    assert answers_to_learn(everything["messages"]) == [3, 5]
    # The answers of a history are learned where all are.
    record = {"query": "r", "response": "b", "history": [["q", "a"]], "system": "s"}
    for key in range(8):
        read = RecordReader("auto", RecordRules(), "random")(record, key)
        assert answers_to_learn(read["messages"]) == [4]
    everything = RecordReader("auto", RecordRules(), "all")(record, 0)
    assert answers_to_learn(everything["messages"]) == [2, 4]


def test_an_answer_that_was_not_drawn_is_context_whatever_its_weight() -> None:
    turns = [user(), bot("a", weight=1), user(), bot("b", weight=1, train=True)]
    reader = RecordReader("messages", RecordRules(), "random")
    read: Any = reader({"messages": turns}, 1)
    assert answers_to_learn(read["messages"]) == [3]
    assert read["messages"][1] == bot("a", weight=1, learn=False)
