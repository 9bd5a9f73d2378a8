"""What the shipped hook makes of records; the ids of every format are in test_golden_formats.py."""

import copy
from typing import Any

import pytest

from llada_sft.data.records.chat_tokens import encode_prompt, encode_record
from llada_sft.errors import DataError


def turn(role: str, content: str) -> dict[str, Any]:
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
    for text in ("ab<|eot_id|>cd", "", " \n\nab ", "<|startoftext|>" * 3):
        expected = own(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
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
        bos_token = "<|startoftext|>"
        apply_chat_template = tokenizer.apply_chat_template

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    assert encode_record({"prompt": "a", "response": "abc"}, Other())["input_ids"][1:] == [3]


def learned(record: object, tokenizer: Any) -> list[str]:
    """The texts that are learned, one for each stretch of the response mask."""
    encoded = encode_record(record, tokenizer)
    stretches: list[list[int]] = []
    before = False
    for token, is_response in zip(encoded["input_ids"], encoded["response_mask"], strict=True):
        if is_response and not before:
            stretches.append([])
        if is_response:
            stretches[-1].append(token)
        before = is_response
    return [tokenizer.decode(ids) for ids in stretches]


def test_which_turn_is_the_response(tokenizer: Any) -> None:
    question, answer = turn("user", "a"), turn("assistant", "b")
    assert learned({"messages": [question, answer]}, tokenizer) == ["b"]
    more = [question, answer, turn("user", "c"), turn("user", "d")]
    assert learned({"messages": more}, tokenizer) == ["b"]
    more = [question, answer, turn("user", "c"), turn("assistant", "d")]
    assert learned({"messages": more}, tokenizer) == ["d"]


def test_turns_that_are_marked_are_learned(tokenizer: Any) -> None:
    questions = [turn("user", letter) for letter in "abc"]
    answers: list[dict[str, Any]] = [turn("assistant", letter) for letter in "def"]
    both = [one for pair in zip(questions, answers, strict=True) for one in pair]
    marked = [one | {"learn": number in (1, 5)} for number, one in enumerate(both)]
    assert learned({"messages": marked}, tokenizer) == ["d", "f"]
    # The field `system` makes one turn more.
    assert learned({"messages": marked, "system": "gh"}, tokenizer) == ["d", "f"]
    only_first = [one | {"learn": number == 1} for number, one in enumerate(both)]
    assert learned({"messages": only_first}, tokenizer) == ["d"]


def test_false_is_no_mark(tokenizer: Any) -> None:
    letters = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    for value in (None, False):
        turns = [turn(role, letter) for role, letter in letters]
        turns[1]["learn"] = value
        assert learned({"messages": turns}, tokenizer) == ["d"]


def test_fields_that_are_none_of_ours_change_nothing(tokenizer: Any) -> None:
    question, answer = turn("user", "a"), turn("assistant", "b")
    plain = encode_record({"messages": [question, answer]}, tokenizer)
    record = {"messages": [question | {"id": 1}, answer], "id": 7, "text": "a b", "system": ""}
    assert encode_record(record, tokenizer) == plain


def test_a_template_that_renders_an_answer_otherwise_later(tokenizer: Any) -> None:
    """As some templates take a model's thoughts out of all turns but the last."""
    turns = [turn("user", "a"), turn("assistant", "bc"), turn("user", "d"), turn("assistant", "e")]
    marked = [one | {"learn": one["role"] == "assistant"} for one in turns]
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m['content'] | replace('b', '') }}{% endfor %}"
    with pytest.raises(DataError) as caught:
        encode_record({"messages": marked}, other)
    assert str(caught.value) == (
        "the chat template renders turn 1 of the conversation differently once others follow; "
        "set data.multi_turn to random or last"
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (7, "a record must be a JSON object, got int"),
        (
            {},
            "no known format: it has no fields; name yours in data.fields, or read them in a hook",
        ),
        (
            {"messages": [turn("user", "a") | {"learn": True}, turn("assistant", "b")]},
            "'messages[0].learn' is true, but that turn is not an answer: "
            "the assistant's, with text, after another turn",
        ),
        (
            {"messages": [turn("assistant", "a") | {"learn": True}, turn("user", "b")]},
            "'messages[0].learn' is true, but that turn is not an answer: "
            "the assistant's, with text, after another turn",
        ),
        (
            {"messages": [turn("user", "a"), turn("assistant", " ") | {"learn": True}]},
            "'messages[1].learn' is true, but that turn is not an answer: "
            "the assistant's, with text, after another turn",
        ),
    ],
)
def test_a_record_that_cannot_be_used(tokenizer: Any, record: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        encode_record(record, tokenizer)
    assert str(caught.value) == message
