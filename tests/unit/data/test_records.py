"""Prompt/response and chat records, down to the token ids, and every bad record's message."""

import copy
from typing import Any

import pytest

from llada_sft.data.records import encode_prompt, encode_record, split_record
from llada_sft.errors import DataError

ROLES = "('system', 'user', 'assistant')"
NEEDS = "a record needs 'prompt' and 'response', or 'messages'"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def frame(ids: dict[str, int], role: str, *text: str) -> list[int]:
    """The ids of one turn of the official layout."""
    tokens = ["<|start_header_id|>", role, "<|end_header_id|>", "\n\n", *text, "<|eot_id|>"]
    return [ids[token] for token in tokens]


@pytest.fixture
def ids(tokenizer: Any) -> dict[str, int]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


@pytest.fixture
def answer_header(ids: dict[str, int]) -> list[int]:
    return frame(ids, "assistant")[:-1]


def test_prompt_and_response(tokenizer: Any, ids: dict[str, int], answer_header: list[int]) -> None:
    encoded = encode_record({"prompt": "reverse abc", "response": "cba"}, tokenizer)
    prompt = [
        ids["<|startoftext|>"],
        *frame(ids, "user", "reverse", " ", "a", "b", "c"),
        *answer_header,
    ]
    assert encoded["input_ids"] == [*prompt, ids["c"], ids["b"], ids["a"]]
    assert encoded["response_mask"] == [False] * len(prompt) + [True] * 3


def test_a_chat(tokenizer: Any, ids: dict[str, int], answer_header: list[int]) -> None:
    messages = [
        turn("system", "abc"),
        turn("user", "reverse ab"),
        turn("assistant", "ba"),
        turn("user", "reverse cd"),
        turn("assistant", "dc"),
        turn("user", "reverse ef"),
    ]
    encoded = encode_record({"messages": messages}, tokenizer)
    prompt = [
        ids["<|startoftext|>"],
        *frame(ids, "system", "a", "b", "c"),
        *frame(ids, "user", "reverse", " ", "a", "b"),
        *frame(ids, "assistant", "b", "a"),
        *frame(ids, "user", "reverse", " ", "c", "d"),
        *answer_header,
    ]
    assert encoded["input_ids"] == [*prompt, ids["d"], ids["c"]]
    assert encoded["response_mask"] == [False] * len(prompt) + [True] * 2


def test_both_forms_of_one_record_are_the_same(tokenizer: Any) -> None:
    messages = [turn("user", "reverse abc"), turn("assistant", "cba")]
    assert encode_record({"messages": messages}, tokenizer) == encode_record(
        {"prompt": "reverse abc", "response": "cba"}, tokenizer
    )


def test_the_response_is_taken_to_the_letter(tokenizer: Any, ids: dict[str, int]) -> None:
    encoded = encode_record({"prompt": " a ", "response": " b\n\n"}, tokenizer)
    learned = [
        token
        for token, is_response in zip(encoded["input_ids"], encoded["response_mask"], strict=True)
        if is_response
    ]
    assert learned == [ids[" "], ids["b"], ids["\n\n"]]
    # As the official template does it, a turn of the prompt loses its blanks at both ends.
    assert encoded["input_ids"].count(ids[" "]) == 1


def test_a_tokenizers_own_template_is_used(tokenizer: Any, ids: dict[str, int]) -> None:
    turns = [turn("user", "ab")]
    own = "{% for m in messages %}{{ m['content'] }}{% endfor %}<|eot_id|>"
    without = encode_prompt(turns, tokenizer)
    original = tokenizer.chat_template
    try:
        tokenizer.chat_template = own
        assert encode_prompt(turns, tokenizer) == [ids["a"], ids["b"], ids["<|eot_id|>"]]
        tokenizer.chat_template = None
        assert encode_prompt(turns, tokenizer) == without
    finally:
        tokenizer.chat_template = original


@pytest.mark.parametrize("split_special_tokens", [False, True])
def test_the_ids_are_those_of_a_call(tokenizer: Any, split_special_tokens: bool) -> None:
    """The tokenizer may bring settings of its own, and has them from call to call."""
    own = copy.deepcopy(tokenizer)
    own.split_special_tokens = split_special_tokens
    for text in ("ab<|eot_id|>cd", "", " \n\nab ", "<|mdm_mask|>" * 3):
        expected = own(text, add_special_tokens=False)["input_ids"]
        own.backend_tokenizer.enable_truncation(2)
        own.backend_tokenizer.enable_padding(length=9)
        own.backend_tokenizer.encode_special_tokens = not split_special_tokens
        encoded = encode_record({"prompt": "a", "response": text + "a"}, own)
        ids, mask = encoded["input_ids"], encoded["response_mask"]
        a = own("a", add_special_tokens=False)["input_ids"]
        assert ids[mask.index(True) :] == expected + a


def test_another_kind_of_tokenizer_is_called(tokenizer: Any, ids: dict[str, int]) -> None:
    class Other:
        chat_template = None
        apply_chat_template = tokenizer.apply_chat_template

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    assert encode_record({"prompt": "a", "response": "abc"}, Other())["input_ids"][1:] == [3]


def test_which_turn_is_the_response() -> None:
    question, answer = turn("user", "q"), turn("assistant", "a")
    assert split_record({"messages": [question, answer]}) == ([question], "a")
    more = [question, answer, turn("user", "r"), turn("user", "s")]
    assert split_record({"messages": more}) == ([question], "a")
    # Further fields of a turn or of a record are none of ours.
    record = {"messages": [question | {"id": 1}, answer], "id": 7}
    assert split_record(record) == ([question], "a")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "a record must be a JSON object, got null"),
        ([], "a record must be a JSON object, got an empty list"),
        ([1], "a record must be a JSON object, got list"),
        ("text", "a record must be a JSON object, got str"),
        (0, "a record must be a JSON object, got int"),
        ({}, f"no 'prompt'; {NEEDS}"),
        ({"prompt": "a"}, f"no 'response'; {NEEDS}"),
        ({"response": "a"}, f"no 'prompt'; {NEEDS}"),
        ({"prompt": 7, "response": "a"}, "'prompt' must be a string, got int"),
        ({"prompt": None, "response": "a"}, "'prompt' must be a string, got null"),
        ({"prompt": [], "response": "a"}, "'prompt' must be a string, got an empty list"),
        ({"prompt": " \n", "response": "a"}, "'prompt' is empty"),
        ({"prompt": "a", "response": ""}, "'response' is empty"),
        ({"prompt": "a", "response": ["b"]}, "'response' must be a string, got list"),
        ({"messages": None}, "'messages' must be a list of turns, got null"),
        ({"messages": {}}, "'messages' must be a list of turns, got an empty dict"),
        ({"messages": "hello"}, "'messages' must be a list of turns, got str"),
        ({"messages": []}, "'messages' must be a list of turns, got an empty list"),
        ({"messages": ["hello"]}, "'messages[0]' must be an object, got str"),
        (
            {"messages": [turn("user", "a"), turn("bot", "b")]},
            f"'messages[1].role' must be one of {ROLES}, got 'bot'",
        ),
        (
            {"messages": [{"content": "a"}]},
            f"'messages[0].role' must be one of {ROLES}, got None",
        ),
        (
            {"messages": [{"role": ["user"], "content": "a"}]},
            f"'messages[0].role' must be one of {ROLES}, got ['user']",
        ),
        ({"messages": [{"role": "user"}]}, "'messages[0].content' must be a string, got null"),
        (
            {"messages": [turn("user", "a"), {"role": "assistant", "content": 3}]},
            "'messages[1].content' must be a string, got int",
        ),
        (
            {"messages": [turn("system", "a"), turn("user", "b")]},
            "'messages' has no assistant turn; a record needs a response",
        ),
        (
            {"messages": [turn("assistant", "a"), turn("user", "b")]},
            "'messages' begins with the assistant; a record needs a prompt",
        ),
        (
            {"messages": [turn("user", "a"), turn("assistant", " ")]},
            "the last assistant turn is empty; a record needs a response",
        ),
    ],
)
def test_a_record_that_cannot_be_used(record: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        split_record(record)
    assert str(caught.value) == message
