"""Records of every known format: read, told apart, and refused in one line."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from llada_sft.config.record_formats import REQUIRED, KnownFormat
from llada_sft.data.records.formats import RecordRules, format_of, likely_format
from llada_sft.data.records.read import Conversation, read_record
from llada_sft.errors import DataError

ROOT = Path(__file__).parents[4]
RAW = ": one run reads one format, or data.format: raw"


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def said(role: str, value: str) -> dict[str, Any]:
    return {"from": role, "value": value}


def read(record: object, record_format: KnownFormat, fields: dict[str, str]) -> object:
    """The turns of a record, or its text."""
    found = read_record(record, record_format, RecordRules(fields))
    return found.turns if isinstance(found, Conversation) else found


PAIR = [turn("user", "a"), turn("assistant", "b")]
WITH_SYSTEM = [turn("system", "s"), *PAIR]


@pytest.mark.parametrize(
    ("record_format", "record", "expected"),
    [
        ("messages", {"messages": PAIR}, PAIR),
        ("messages", {"messages": PAIR, "system": "s"}, WITH_SYSTEM),
        ("messages", {"messages": WITH_SYSTEM, "system": None}, WITH_SYSTEM),
        ("messages", {"messages": WITH_SYSTEM, "system": " "}, WITH_SYSTEM),
        # A turn keeps its other fields.
        (
            "messages",
            {"messages": [PAIR[0] | {"name": "x", "weight": 0}]},
            [PAIR[0] | {"name": "x", "weight": 0}],
        ),
        ("sharegpt", {"conversations": [said("human", "a"), said("gpt", "b")]}, PAIR),
        ("sharegpt", {"conversations": [said("user", "a"), said("model", "b")]}, PAIR),
        (
            "sharegpt",
            {"conversations": [said("system", "s"), said("human", "a"), said("assistant", "b")]},
            WITH_SYSTEM,
        ),
        ("prompt_response", {"prompt": "a", "response": "b", "system": "s"}, WITH_SYSTEM),
        ("alpaca", {"instruction": "a", "output": "b", "system": ""}, PAIR),
        ("alpaca", {"instruction": "a", "input": None, "output": "b"}, PAIR),
        ("alpaca", {"instruction": "a", "input": " \n", "output": "b"}, PAIR),
        (
            "alpaca",
            {"instruction": "a", "input": " c ", "output": "b"},
            [turn("user", "a\n\n c "), PAIR[1]],
        ),
        ("text", {"text": " a ", "system": 7}, " a "),
    ],
)
def test_a_record_is_read(
    record_format: KnownFormat, record: dict[str, Any], expected: object
) -> None:
    before = repr(record)
    assert read(record, record_format, {}) == expected
    assert repr(record) == before
    assert format_of(record, {}) == record_format


@pytest.mark.parametrize(
    "turns",
    [
        PAIR,
        WITH_SYSTEM,
        [said("human", "a"), said("gpt", "b")],
        [{"prompt": "a", "response": "b"}],
        [{"role": "user"}],
        [{"role": "cook", "content": "a"}],
        [],
        "hello",
        None,
    ],
)
def test_a_record_of_turns_alone_is_read_like_one_with_other_fields(turns: Any) -> None:
    def result(record: Mapping[str, Any]) -> object:
        try:
            return format_of(record, {}), read(record, "messages", {})
        except DataError as error:
            return str(error)

    # The short way is for a dict of one field.
    assert result({"messages": turns}) == result({"messages": turns, "id": 7})
    alone = {"messages": turns}
    assert format_of(alone, {}) == format_of(MappingProxyType(alone), {})


def test_fields_may_have_other_names() -> None:
    fields = {"conversations": "dialog", "from": "who", "value": "says", "system": "rules"}
    dialog = [{"who": "human", "says": "a"}, {"who": "gpt", "says": "b"}]
    record = {"dialog": dialog, "rules": "s", "system": "none of ours"}
    assert read(record, "sharegpt", fields) == WITH_SYSTEM
    assert format_of(record, fields) == "sharegpt"
    assert format_of(record, {}) is None
    swapped = {"prompt": "b", "response": "a"}
    fields = {"prompt": "response", "response": "prompt"}
    assert read(swapped, "prompt_response", fields) == PAIR


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": PAIR, "prompt": "a", "response": "b", "text": "ab"}, "messages"),
        ({"prompt": "a", "response": "b", "text": "ab"}, "prompt_response"),
        ({"instruction": "a", "output": "b", "prompt": "rendered"}, "alpaca"),
        # Tables that were joined fill what is missing with null.
        ({"messages": None, "prompt": "a", "response": "b"}, "prompt_response"),
        ({"conversations": PAIR}, "messages"),
        ({"messages": [said("human", "a"), said("gpt", "b")]}, "messages"),
        ({"messages": []}, None),
        ({"messages": "hello"}, None),
        # Half a turn.
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"content": "a"}], "text": "ab"}, "text"),
        ({"conversations": [{"value": "a"}]}, None),
        # For a hook of the user's own.
        ({"prompt": [1, 2], "response": [3]}, None),
        ({"question": "a", "answer": "b"}, "prompt_response"),
        ({"problem": "a", "solution": "b"}, None),
        ([1], None),
        (None, None),
    ],
)
def test_formats_are_told_apart(record: object, expected: str | None) -> None:
    assert format_of(record, {}) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "a record must be a JSON object, got null"),
        ([], "a record must be a JSON object, got an empty list"),
        ([1], "a record must be a JSON object, got list"),
        ("text", "a record must be a JSON object, got str"),
        (
            {"a": "a", "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "g": 6, "h": 7, "i": 8},
            "no known format: its fields are 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', ...; "
            "name yours in data.fields, or read them in a hook",
        ),
        (
            {"prompt": "a"},
            "not prompt_response: no 'response'; its fields are 'prompt'",
        ),
        (
            {"response": "a", "id": 3},
            "not prompt_response: no 'prompt'; its fields are 'response', 'id'",
        ),
        ({"prompt": 7, "response": "a"}, "'prompt' must be a string, got int"),
        ({"prompt": None, "response": "a"}, "'prompt' must be a string, got null"),
        ({"prompt": [], "response": "a"}, "'prompt' must be a string, got an empty list"),
        ({"prompt": " \n", "response": "a"}, "'prompt' is empty"),
        ({"prompt": "a", "response": ""}, "'response' is empty"),
        ({"prompt": "a", "response": ["b"]}, "'response' must be a string, got list"),
        ({"prompt": "a", "response": "b", "system": 5}, "'system' must be a string, got int"),
        ({"instruction": "a", "output": " "}, "'output' is empty"),
        ({"instruction": "", "output": "b", "input": "c"}, "'instruction' is empty"),
        ({"instruction": "a", "output": "b", "input": 5}, "'input' must be a string, got int"),
        ({"text": " \n"}, "'text' is empty"),
        ({"text": None}, "'text' must be a string, got null"),
        ({"messages": None}, "'messages' must be a list of turns, got null"),
        ({"messages": {}}, "'messages' must be a list of turns, got an empty dict"),
        ({"messages": "hello"}, "'messages' must be a list of turns, got str"),
        ({"messages": []}, "'messages' must be a list of turns, got an empty list"),
        ({"messages": ["hello"]}, "'messages[0]' must be an object, got str"),
        (
            {"messages": [PAIR[0], turn("Bob", "b")]},
            "'messages[1].role' is 'Bob', no known role; name it in data.roles={Bob: user}",
        ),
        (
            {"messages": [{"content": "a"}]},
            "'messages[0]' has no 'role'; its fields are 'content'; "
            "name yours in data.fields={role: ...}",
        ),
        (
            {"messages": [{"role": ["user"], "content": "a"}]},
            "'messages[0].role' must be a string, got list",
        ),
        (
            {"messages": [{"role": "user"}]},
            "'messages[0]' has no 'content'; its fields are 'role'; "
            "name yours in data.fields={content: ...}",
        ),
        (
            {"messages": [PAIR[0], {"role": "assistant", "content": 3}]},
            "'messages[1].content' must be a string, got int",
        ),
        (
            {"messages": WITH_SYSTEM, "system": "t"},
            "both 'system' and a system turn; keep one",
        ),
        (
            {"conversations": [said("human", "a"), said("Alice", "b")]},
            "'conversations[1].from' is 'Alice', no known role; "
            "name it in data.roles={Alice: user}",
        ),
        (
            {"conversations": [{"from": "human", "value": None}]},
            "'conversations[0].value' must be a string, got null",
        ),
    ],
)
def test_a_record_that_cannot_be_read(record: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(record, likely_format(record, {}), {})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("record_format", "fields", "record", "message"),
    [
        (
            "messages",
            {},
            {"prompt": "a", "response": "b"},
            "not messages: no 'messages'; its fields are 'prompt', 'response'; "
            f"it is prompt_response{RAW}",
        ),
        (
            "prompt_response",
            {"prompt": "question", "response": "answer"},
            {"question": "a", "reply": "b"},
            "not prompt_response: no 'answer'; its fields are 'question', 'reply'",
        ),
        (
            "alpaca",
            {},
            {"text": "a"},
            f"not alpaca: no 'instruction', 'output'; its fields are 'text'; it is text{RAW}",
        ),
        ("sharegpt", {}, {}, "not sharegpt: no 'conversations'; it has no fields"),
        ("text", {}, ["a"], "a record must be a JSON object, got list"),
        (
            "messages",
            {"messages": "dialog", "content": "says"},
            {"dialog": [{"role": "user", "content": "a"}]},
            "'dialog[0]' has no 'says'; its fields are 'role', 'content'; "
            "name yours in data.fields={content: ...}",
        ),
    ],
)
def test_a_record_of_another_format(
    record_format: KnownFormat, fields: dict[str, str], record: object, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(record, record_format, fields)
    assert str(caught.value) == message


def test_the_rows_that_the_docs_show() -> None:
    table = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", (ROOT / "docs/data.md").read_text(), re.M)
    assert [name for name, _ in table] == list(REQUIRED)
    assert [format_of(json.loads(row), {}) for _, row in table] == list(REQUIRED)
    (rows,) = re.findall(r"^```json\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [format_of(json.loads(row), {}) for row in rows.splitlines()] == list(REQUIRED)
