"""Rows of token ids, roles by any word, and rows that SFT does not learn."""

from typing import Any

import pytest

from llada_sft.data.records.formats import RecordRules, format_of, likely_format
from llada_sft.data.records.read import Conversation, Tokenized, read_record
from llada_sft.errors import DataError

IDS = [5, 6, 7]


def user(text: str = "q") -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str = "a") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(record: dict[str, Any], **rules: Any) -> Any:
    known = RecordRules(**rules)
    return read_record(record, likely_format(record, known.fields), known)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"labels": [-100, 6, 7]}, (IDS, [False, True, True])),
        ({"labels": [-100, 6, -100], "attention_mask": [1, 1, 1]}, (IDS, [False, True, False])),
        ({"labels": [-100, 6, -100], "attention_mask": [1, 1, 0]}, ([5, 6], [False, True])),
        ({"response_mask": [False, True, True]}, (IDS, [False, True, True])),
        ({"response_mask": [0, 1, 1], "labels": None}, (IDS, [False, True, True])),
        ({"loss_mask": [0, 0, 1]}, (IDS, [False, False, True])),
        ({"completion_mask": [0, 1, 0]}, (IDS, [False, True, False])),
        ({"assistant_masks": [0, 1, 1]}, (IDS, [False, True, True])),
        # An id of 0 or 1 is a label like others.
        ({"input_ids": [1, 0, 1], "labels": [-100, 0, 1]}, ([1, 0, 1], [False, True, True])),
    ],
)
def test_rows_of_token_ids(more: dict[str, Any], expected: tuple[list[int], list[bool]]) -> None:
    record = {"input_ids": IDS, **more}
    assert format_of(record, {}) == "tokens"
    assert read(record) == Tokenized(*expected)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"input_ids": IDS, "labels": [6, 7, -100]},
            "'labels[0]' must be -100 or the id of its token, 5; got 6:"
            " labels are not shifted here",
        ),
        (
            {"input_ids": IDS, "response_mask": [0, 2, 1]},
            "'response_mask[0]' must be -100 or the id of its token, 5; got 0:"
            " labels are not shifted here",
        ),
        (
            {"input_ids": IDS, "labels": [-100, 6]},
            "'input_ids' and 'labels' must have the same length, got 3 and 2",
        ),
        (
            {"input_ids": IDS, "labels": IDS, "attention_mask": [1]},
            "'attention_mask' must have the length of 'input_ids', got 1 and 3",
        ),
        ({"input_ids": IDS}, "not tokens: no 'labels'; its fields are 'input_ids'"),
        (
            {"input_ids": [5, "6"], "labels": [5, 6]},
            "'input_ids' must be a list of integers, got list",
        ),
        ({"input_ids": "5 6", "labels": []}, "'input_ids' must be a list of integers, got str"),
        ({"input_ids": [1.0], "labels": [1]}, "'input_ids' must be a list of integers, got list"),
    ],
)
def test_token_ids_that_cannot_be_used(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(record)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("word", "role"),
    [
        ("Human", "user"),
        ("USER", "user"),
        (" prompter", "user"),
        ("Assistant", "assistant"),
        ("bot", "assistant"),
        ("GPT", "assistant"),
        ("model", "assistant"),
        ("ChatGPT", "assistant"),
        ("AI", "assistant"),
        ("System", "system"),
        ("developer", "developer"),
        ("Tool", "tool"),
        ("observation", "observation"),
        ("environment", "environment"),
        ("function", "function"),
    ],
)
def test_words_for_roles(word: str, role: str) -> None:
    for names in (("role", "content"), ("from", "value")):
        record = {"messages": [{names[0]: word, names[1]: "x"}]}
        (turn,) = read(record).turns
        assert turn == {"role": role, "content": "x"}


def test_words_of_the_user_s_own() -> None:
    roles = {"Alice": "user", "narrator": "system", "bot": "tool"}
    turns = [{"role": word, "content": "x"} for word in ("narrator", "Alice", "bot", "gpt")]
    found = read({"messages": turns}, roles=roles).turns
    assert [turn["role"] for turn in found] == ["system", "user", "tool", "assistant"]
    with pytest.raises(DataError) as caught:
        read({"messages": [{"role": "alice", "content": "x"}]}, roles=roles)
    assert str(caught.value) == (
        "'messages[0].role' is 'alice', no known role; name it in data.roles={alice: user}"
    )


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "answer": "a"},
        {"question": "q", "answer": "a"},
        {"question": "q", "response": "a"},
        {"query": "q", "response": "a"},
        {"query": "q", "answer": "a"},
        {"input": "q", "output": "a"},
        {"prompt": [user()], "completion": [bot()]},
        {"prompt": [user()], "completion": bot()},
        {"prompt": "q", "completion": [bot()]},
        {"prompt": user(), "response": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "response": "a"},
        {"instruction": "q", "input": None, "response": "a"},
        {"instruction": "q", "context": "", "response": "a"},
        {"conversations": [user(), bot()]},
        {"conversation": [user(), bot()]},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversation": [{"human": "q", "assistant": "a"}]},
        {"conversation": [{"input": "q", "output": "a"}]},
        {"messages": [{"user": "q", "gpt": "a"}]},
        # What a join has left empty is not there.
        {"messages": None, "prompt": None, "question": "q", "completion": None, "answer": "a"},
    ],
)
def test_one_question_and_its_answer_under_many_names(record: dict[str, Any]) -> None:
    assert format_of(record, {}) is not None
    assert read(record) == Conversation([user(), bot()])


@pytest.mark.parametrize(
    ("record", "fields", "turns"),
    [
        # Which of several names is read, and that a field is read once.
        ({"prompt": "q", "question": "x", "response": "a"}, {}, [user(), bot()]),
        ({"question": "q", "input": "x", "answer": "a", "output": "y"}, {}, [user(), bot()]),
        ({"instruction": "q", "input": "x", "response": "a"}, {}, [user("q\n\nx"), bot()]),
        ({"input": "q", "output": "a"}, {"instruction": "input"}, [user(), bot()]),
        ({"a": "q", "b": "a"}, {"prompt": "a", "response": "b"}, [user(), bot()]),
        ({"dialog": [user(), bot()]}, {"messages": "dialog"}, [user(), bot()]),
        (
            {"system_prompt": "s", "question": "q", "answer": "a"},
            {},
            [{"role": "system", "content": "s"}, user(), bot()],
        ),
        (
            {"conversation": [{"system": "s", "human": "q", "assistant": "a"}] * 2},
            {},
            [{"role": "system", "content": "s"}, user(), bot()] * 2,
        ),
    ],
)
def test_which_name_is_read(
    record: dict[str, Any], fields: dict[str, str], turns: list[dict[str, Any]]
) -> None:
    assert read(record, fields=fields).turns == turns


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "be brief", "question": "q", "answer": "a"},
        {"instruction": "i", "input": "x", "completion": "a"},
    ],
)
def test_an_instruction_is_never_left_out(record: dict[str, Any]) -> None:
    assert format_of(record, {}) is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"dialog": [{"speaker": "user", "text": "q"}]},
            "no known format: its fields are 'dialog'; if 'dialog' is the list of turns:"
            " data.fields={messages: dialog}; name yours in data.fields, or read them in a hook",
        ),
        (
            {"messages": [{"speaker": "user", "text": "q"}]},
            "'messages[0]' has no 'role'; its fields are 'speaker', 'text';"
            " name yours in data.fields={role: ...}",
        ),
        (
            {"messages": [{"role": "user", "text": "q"}]},
            "'messages[0]' has no 'content'; its fields are 'role', 'text';"
            " name yours in data.fields={content: ...}",
        ),
        (
            {"query": "q", "response": "a", "history": "x"},
            "'history' must be a list of pairs, got str",
        ),
        (
            {"query": "q", "response": "a", "history": [["x"]]},
            "'history[0]' must be a pair of texts, got list",
        ),
        (
            {"query": "q", "response": "a", "history": [["x", None]]},
            "'history[0][1]' must be a string, got null",
        ),
        (
            {"messages": [user(), bot()], "tools": {"name": "f"}},
            "'tools' must be a list of objects, got dict",
        ),
        (
            {"messages": [user(), bot()], "tools": "["},
            "'tools' is not JSON: unexpected end of data",
        ),
        ({"prompt": [], "completion": "a"}, "'prompt' must be a string, got an empty list"),
        ({"prompt": "q", "completion": [7]}, "'completion' must be a string, got list"),
    ],
)
def test_what_to_set_is_said(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(record)
    assert str(caught.value) == message


PAIR = "which SFT does not learn; to learn the better answer: data.fields="


@pytest.mark.parametrize(
    ("record", "ending"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, f"{PAIR}{{response: chosen}}"),
        ({"prompt": "q", "chosen": [bot()], "rejected": [bot("b")]}, f"{PAIR}{{response: chosen}}"),
        ({"chosen": [user(), bot()], "rejected": []}, f"{PAIR}{{messages: chosen}}"),
        ({"chosen": "a", "prompt": "q"}, f"{PAIR}{{response: chosen}}"),
        (
            {"messages": [user()], "chosen": bot(), "rejected": bot("b")},
            f"{PAIR}{{prompt: messages, response: chosen}}",
        ),
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, f"{PAIR}{{output: chosen}}"),
        (
            {"messages": [user(), bot()], "rejected_messages": [user(), bot("b")]},
            "to learn the other answer: data.ignore_fields=[rejected_messages]",
        ),
        (
            {"prompt": "q", "response": "a", "rejected": "b"},
            "to learn the other answer: data.ignore_fields=[rejected]",
        ),
        (
            {"prompt": "q", "completion": "a", "label": True},
            "has a KTO label ('label': true), which SFT does not learn; to learn every answer"
            " whatever its label: data.ignore_fields=[label]",
        ),
        ({"messages": [user(), bot()], "kto_tag": False}, "data.ignore_fields=[kto_tag]"),
    ],
)
def test_rows_that_are_not_for_sft(record: dict[str, Any], ending: str) -> None:
    with pytest.raises(DataError) as caught:
        read(record)
    assert str(caught.value).endswith(ending)
    # What the line says works.
    if "ignore_fields" in ending:
        name = ending.rpartition("[")[2].rstrip("]")
        assert read(record, ignored=frozenset({name})).turns == [user(), bot()]
        return
    inner = ending.removeprefix(PAIR).strip("{}")
    fields = dict(pair.split(": ") for pair in inner.split(", "))
    assert read(record, fields=fields).turns == [user(), bot()]


def test_a_label_that_is_a_word_is_no_verdict() -> None:
    record = {"prompt": "q", "response": "a", "label": "sports"}
    assert read(record).turns == [user(), bot()]
