"""Turns that are more than text, for templates that know them and for those that do not."""

import copy
from pathlib import Path
from typing import Any

import pytest

from llada_sft.config.record_formats import MultiTurn
from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.chat_tokens import encode_prompt, encode_record
from llada_sft.data.records.formats import RecordRules
from llada_sft.data.records.normalize import RecordReader
from llada_sft.errors import DataError

FOLDER = Path(__file__).parents[3] / "golden/tokenizer_bytes"
HEADER = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
# Knows tools, calls, reasoning (of the last turn alone) and turns of tools.
TOOLS = (
    "{{ bos_token }}"
    "{% if tools %}[tools]{% for tool in tools %}{{ tool | tojson }}{% endfor %}[/tools]{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}[result]{{ m.content }}[/result]"
    "{% else %}{{ " + HEADER + " }}"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}[call]{{ call.function | tojson }}[/call]{% endfor %}"
    "<|eot_id|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The text next to a call is lost, and a system turn.
LOSSY = (
    "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{% elif m.role != 'system' %}{{ m.content }}{% endif %}|{% endfor %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
LEFT_OUT = (
    "is dropped by the model's chat template; use a template that knows it, remove it, or name it"
    " in data.ignore_fields"
)


@pytest.fixture(scope="module")
def plain() -> Any:
    return load_tokenizer(FOLDER)


def with_template(tokenizer: Any, template: object) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def user(text: str = "q") -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str | None = "a", **more: object) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def learned(
    record: object, tokenizer: Any, multi_turn: MultiTurn = "last", record_format: Any = "auto"
) -> list[str]:
    """Prompt, answer, prompt, answer ... as text."""
    read = RecordReader(record_format, RecordRules(), multi_turn)(record, 0)
    encoded = encode_record(read, tokenizer)
    pieces: list[tuple[bool, list[int]]] = []
    for token, is_learned in zip(encoded["input_ids"], encoded["response_mask"], strict=True):
        if not pieces or pieces[-1][0] != is_learned:
            pieces.append((is_learned, []))
        pieces[-1][1].append(token)
    assert [is_learned for is_learned, _ in pieces] == [False, True] * (len(pieces) // 2)
    return [tokenizer.decode(ids) for _, ids in pieces]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (bot(tool_calls=[CALL]), 'a[call]{"name": "f", "arguments": {"x": 1}}[/call]'),
        (bot("", tool_calls=[CALL]), '[call]{"name": "f", "arguments": {"x": 1}}[/call]'),
        (bot(None, tool_calls=[CALL]), '[call]{"name": "f", "arguments": {"x": 1}}[/call]'),
        (
            {"role": "assistant", "tool_calls": [CALL, CALL]},
            '[call]{"name": "f", "arguments": {"x": 1}}[/call]' * 2,
        ),
        # Arguments that are text stay text.
        (
            bot("", tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]),
            '[call]{"name": "f", "arguments": "{}"}[/call]',
        ),
        # As OpenAI wrote it once, and without a frame.
        (bot("", function_call={"name": "f"}), '[call]{"name": "f"}[/call]'),
        (bot("", tool_calls=[{"name": "f"}]), '[call]{"name": "f"}[/call]'),
        (bot("", tool_calls='[{"name": "f"}]'), '[call]{"name": "f"}[/call]'),
        (bot(reasoning_content="r"), "<think>r</think>a"),
        (bot(reasoning_content="r", tool_calls=[]), "<think>r</think>a"),
        # transformers passes them on under the other name.
        (bot(reasoning="r"), "<think>r</think>a"),
        (bot(thinking="r"), "<think>r</think>a"),
        (bot(tool_calls=None, reasoning_content=None), "a"),
    ],
)
def test_an_answer_is_what_the_template_shows(
    plain: Any, answer: dict[str, Any], expected: str
) -> None:
    tokenizer = with_template(plain, TOOLS)
    record = {"messages": [user(), answer], "tools": [TOOL]}
    prompt, response = learned(record, tokenizer)
    assert response == expected
    shown = tokenizer.apply_chat_template(
        [user()], tools=[TOOL], add_generation_prompt=True, tokenize=False
    )
    assert prompt == shown
    read: Any = RecordReader("messages")(record, 0)
    encoded = encode_record(read, tokenizer)
    length = encoded["response_mask"].index(True)
    assert encoded["input_ids"][:length] == encode_prompt([user()], tokenizer, [TOOL])


def test_prompt_and_answer_are_all_of_what_the_template_renders(plain: Any) -> None:
    """The tokenizer's own apply_chat_template, up to the token that closes the turn."""
    tokenizer = with_template(plain, TOOLS)
    turns = [user(), bot("", tool_calls=[CALL]), {"role": "tool", "content": "1"}, bot("b")]
    for number in (1, 3):
        encoded = encode_record({"messages": turns[: number + 1], "tools": [TOOL]}, tokenizer)
        whole = tokenizer.apply_chat_template(turns[: number + 1], tools=[TOOL], tokenize=False)
        ids = tokenizer(whole.removesuffix("<|eot_id|>"), add_special_tokens=False)["input_ids"]
        assert encoded["input_ids"] == ids


@pytest.mark.parametrize(
    "record",
    [
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "f"}]',
        },
        {
            "messages": [
                user(),
                {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'},
                {"role": "tool_response", "content": "1"},
                bot(),
            ],
            "tools": [{"name": "f"}],
        },
    ],
)
def test_turns_of_tools_under_other_names(plain: Any, record: dict[str, Any]) -> None:
    tokenizer = with_template(plain, TOOLS)
    ask = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    start = '<|startoftext|>[tools]{"name": "f"}[/tools]'
    start += "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    call = '[call]{"name": "f", "arguments": {}}[/call]'
    assert learned(record, tokenizer) == [
        f"{start}{ask}{call}<|eot_id|>[result]1[/result]{ask}",
        "a",
    ]
    assert learned(record, tokenizer, "all") == [
        start + ask,
        call,
        f"<|eot_id|>[result]1[/result]{ask}",
        "a",
    ]


def test_a_word_of_the_template_is_left_to_it(plain: Any) -> None:
    tokenizer = with_template(
        plain, "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    turns = [{"role": "observation", "content": "x"}, {"role": "developer", "content": "y"}, bot()]
    assert learned({"messages": turns}, tokenizer)[0] == "[tool]x[system]y"
    tokenizer.chat_template += "{# observation developer #}"
    assert learned({"messages": turns}, tokenizer)[0] == "[observation]x[developer]y"


def test_reasoning_of_earlier_turns_is_the_template_s_affair(plain: Any) -> None:
    tokenizer = with_template(plain, TOOLS)
    turns = [user(), bot(reasoning_content="r"), user("p"), bot("b", reasoning_content="s")]
    prompt, response = learned({"messages": turns}, tokenizer)
    assert "r" not in prompt.replace("user", "").replace("header", "").replace("start", "")
    assert response == "<think>s</think>b"
    with pytest.raises(DataError) as caught:
        learned({"messages": turns}, tokenizer, "all")
    assert str(caught.value) == (
        "the chat template renders turn 1 of the conversation differently once others follow; "
        "set data.multi_turn to random or last"
    )


@pytest.mark.parametrize(
    ("template", "turns", "more", "what"),
    [
        (None, [user(), bot(tool_calls=[CALL])], {}, "'messages[1].tool_calls'"),
        (None, [user(), bot("", function_call={"name": "f"})], {}, "'messages[1].function_call'"),
        (None, [user(), bot(reasoning_content="r")], {}, "'messages[1].reasoning_content'"),
        (None, [user(), bot(thinking="r")], {}, "'messages[1].thinking'"),
        (None, [user(), bot(reasoning="r"), user(), bot()], {}, "'messages[1].reasoning'"),
        (None, [user(), bot()], {"tools": [TOOL]}, "'tools'"),
        (None, [user(), bot()], {"functions": [{"name": "f"}]}, "'tools'"),
        (LOSSY, [user(), bot(thinking="r")], {}, "'messages[1].thinking'"),
        (LOSSY, [user(), bot(reasoning="r"), user(), bot()], {}, "'messages[1].reasoning'"),
        (LOSSY, [user(), bot()], {"tools": [TOOL]}, "'tools'"),
        (LOSSY, [user(), bot(tool_calls=[CALL])], {}, "'messages[1].content', next to a call,"),
        (
            LOSSY,
            [{"role": "system", "content": "s"}, user(), bot()],
            {},
            "'messages[0]', a turn of role 'system',",
        ),
    ],
)
def test_what_the_template_leaves_out_makes_a_bad_row(
    plain: Any, template: str | None, turns: list[dict[str, Any]], more: dict[str, Any], what: str
) -> None:
    tokenizer = with_template(plain, template)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            learned({"messages": turns, **more}, tokenizer)
        assert str(caught.value) == f"{what} {LEFT_OUT}"
    # Who does not want it says so.
    ignored = frozenset(
        {"tool_calls", "function_call", "reasoning_content", "thinking", "reasoning", "tools"}
        | {"functions"}
    )
    if template != LOSSY and turns[1].get("content"):
        read = RecordReader("messages", RecordRules(ignored=ignored), "last")(
            {"messages": turns, **more}, 0
        )
        assert encode_record(read, tokenizer)["response_mask"][-1]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (
            [user(), bot("", tool_calls={"name": "f"})],
            "'messages[1].tool_calls' must be a list of calls, got dict",
        ),
        (
            [user(), bot("", tool_calls="{")],
            "'messages[1].tool_calls' is not JSON: unexpected end of data",
        ),
        (
            [user(), bot("", tool_calls=[{"id": 1}])],
            "'messages[1].tool_calls[0]' must be a call with a name, got dict",
        ),
        (
            [user(), {"role": "tool_call", "content": "call f"}],
            "'messages[1].content' is not JSON: unexpected character, expected a JSON value",
        ),
        ([user(), bot(None)], "'messages[1].content' must be a string, got null"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, bot()],
            "'messages[0].content[0].type' is 'image_url'; only parts of text can be read",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}, bot()],
            "'messages[0].content[0].text' must be a string, got null",
        ),
        (
            [{"role": "user", "content": [7]}, bot()],
            "'messages[0].content[0]' must be a string, got int",
        ),
    ],
)
def test_calls_and_parts_that_cannot_be_read(
    plain: Any, turns: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        learned({"messages": turns}, plain, record_format="messages")
    assert str(caught.value) == message


def test_parts_of_text_are_joined(plain: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"text": "b"}, "c"]
    record = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]
    }
    prompt, response = learned(record, plain)
    assert "\n\nabc<|eot_id|>" in prompt and response == "abc"


NAMED = [
    {
        "name": "default",
        "template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    },
    {
        "name": "tool_use",
        "template": "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}",
    },
]


def test_several_templates(plain: Any) -> None:
    for templates in (NAMED, {one["name"]: one["template"] for one in NAMED}):
        tokenizer = with_template(plain, templates)
        assert learned({"messages": [user(), bot()]}, tokenizer) == ["<user>q", "a"]
        with_tools = {"messages": [user(), bot()], "tools": [{"name": "f"}]}
        assert learned(with_tools, tokenizer) == ['[{"name": "f"}]q', "a"]
    tokenizer = with_template(plain, NAMED[1:])
    with pytest.raises(DataError) as caught:
        learned({"messages": [user(), bot()]}, tokenizer)
    assert str(caught.value) == (
        "the tokenizer's chat_template has 'tool_use' and no 'default'; name one so"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template."),
        ("{{ persona.name }}", "UndefinedError: 'persona' is undefined"),
        ("{{ raise_exception('roles must\nalternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
    ],
)
def test_a_template_that_fails_says_so_in_one_line(plain: Any, template: str, message: str) -> None:
    tokenizer = with_template(plain, template)
    with pytest.raises(DataError) as caught:
        learned({"messages": [user(), bot()]}, tokenizer)
    said = str(caught.value)
    assert said.startswith(f"the chat template cannot render this conversation: {message}")
    assert "\n" not in said


def test_a_template_that_changes_what_precedes_an_answer(plain: Any) -> None:
    tokenizer = with_template(
        plain,
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{{ m.tool_calls }}"
        "{% endfor %}",
    )
    with pytest.raises(DataError) as caught:
        learned({"messages": [user(), bot("", tool_calls=[CALL])]}, tokenizer)
    assert str(caught.value) == (
        "the chat template renders what precedes turn 1 differently once that turn follows; the"
        " turn cannot be learned as the template shows it"
    )
