"""Whatever a row is and has beside it: what is not read is named, what is not to be learned is not.

Rows of all formats, with fields of any names and values added to them and to their turns.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llada_sft.config.record_formats import ALIASES, FIELDS, REQUIRED, KnownFormat, MultiTurn
from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.chat_tokens import encode_record
from llada_sft.data.records.conversation import CALLS, FLAGS, REASONING
from llada_sft.data.records.formats import RecordRules, format_of, names_in
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.records.turns import NothingToLearnError
from llada_sft.errors import DataError

TOKENIZER = load_tokenizer(Path(__file__).parents[3] / "golden/tokenizer_bytes")
TOKENIZER.chat_template = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' + m.content + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}"
)
WORDS = st.sampled_from(["a", "b c", "Ä", " d ", "e\n", "f"])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    WORDS,
    st.lists(WORDS, max_size=2),
    st.just({"a": 1}),
)
# Names that formats know, and names that they do not.
KNOWN = {name for names in FIELDS.values() for name in names}
KNOWN |= {name for of in ALIASES.values() for names in of.values() for name in names}
OTHERS = ["id", "source", "score", "lang", "Messages", "prompt_id", "meta", "name", "labels2"]
EXTRA = st.dictionaries(st.sampled_from([*OTHERS, *sorted(KNOWN)]), VALUES, max_size=3)
# Mostly nothing, as in most files; else what turns have in some.
OF_TURNS = st.sampled_from(
    [
        *[{}] * 12,
        {"name": "Al"},
        {"id": 3, "mood": ""},
        {"mood": "glad"},
        {"weight": 0},
        {"weight": 1},
        {"weight": 0.5, "train": True},
        {"train": False},
        {"loss": True},
        {"learn": False, "name": "Al"},
        {"weight": "1"},
        {"tool_calls": None, "reasoning_content": None},
        {"tool_calls": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"reasoning_content": "r"},
        {"thinking": "t"},
    ]
)


OF_USERS: list[dict[str, Any]] = [
    *[{}] * 4,
    {"name": "Al"},
    {"weight": 0},
    {"train": False},
    {"train": True},
]


@st.composite
def turns_of(draw: st.DrawFn, role: str, content: str) -> list[dict[str, Any]]:
    turns = []
    for number in range(draw(st.integers(1, 3))):
        for who in ("user", "assistant"):
            more = draw(OF_TURNS) if who == "assistant" else draw(st.sampled_from(OF_USERS))
            turns.append({role: who, content: f"{who[0]}{number}{draw(WORDS)}", **more})
    return turns


@st.composite
def rows(draw: st.DrawFn, *formats: KnownFormat) -> dict[str, Any]:
    """A row of a format, and fields that are none of it."""
    record_format = draw(st.sampled_from(formats or tuple(REQUIRED)))
    row: dict[str, Any] = {
        "messages": lambda: {"messages": draw(turns_of("role", "content"))},
        "sharegpt": lambda: {"conversations": draw(turns_of("from", "value"))},
        "prompt_response": lambda: {"prompt": f"p{draw(WORDS)}", "response": f"r{draw(WORDS)}"},
        "alpaca": lambda: {"instruction": f"p{draw(WORDS)}", "output": f"r{draw(WORDS)}"},
        "tokens": lambda: {"input_ids": [256, 64, 65], "labels": [-100, 64, 65]},
        "text": lambda: {"text": f"t{draw(WORDS)}"},
    }[record_format]()
    return {**draw(EXTRA), **row}


# Of a text that is stored next to what was made of it, and fields that other rows are read by.
NEXT_TO_IT = st.sampled_from(
    [
        {},
        {"question": "q", "answer": "WRONG"},
        {"input": "q", "completion": "WRONG"},
        {"instruction": "q", "response": "WRONG"},
        {"conversation": [{"role": "user", "content": "q"}, {"role": "bot", "content": "WRONG"}]},
        {"system": "s", "system_prompt": "WRONG"},
        {"input_ids": [1, 2], "response_mask": [0, 1]},
        {"attention_mask": [1, 0, 1]},
    ]
)
NAMED: list[dict[str, str]] = [
    *[{}] * 4,
    {"prompt": "system"},
    {"response": "system_prompt"},
    {"system": "id"},
    {"tools": "source"},
    {"text": "conversation"},
    {"output": "tools"},
]


def encoded_or_not(row: dict[str, Any], reader: RecordReader) -> object:
    try:
        return encode_record(reader(row, 1), TOKENIZER)
    except (DataError, NothingToLearnError) as error:
        return type(error)


@given(row=rows(), more=NEXT_TO_IT, fields=st.sampled_from(NAMED))
@settings(max_examples=600, deadline=None)
def test_a_field_that_is_not_read_changes_nothing(
    row: dict[str, Any], more: dict[str, Any], fields: dict[str, str]
) -> None:
    row = {**more, **row}
    for own, name in fields.items():
        if own in row:
            row[name] = row.pop(own)
    record_format = format_of(row, fields)
    assume(record_format is not None)
    assert record_format is not None
    reader = RecordReader(record_format, RecordRules(fields))
    unread = reader.unread(row)
    alone = {name: value for name, value in row.items() if name not in unread}
    assert encoded_or_not(row, reader) == encoded_or_not(alone, reader)


@given(turns=turns_of("role", "content"), multi_turn=st.sampled_from(["random", "last", "all"]))
@settings(max_examples=300, deadline=None)
def test_entries_of_question_and_answer_are_read_as_turns(
    turns: list[dict[str, Any]], multi_turn: MultiTurn
) -> None:
    asked = [{"role": "user", "content": turn["content"]} for turn in turns[::2]]
    answers = turns[1::2]
    pairs = []
    for question, answer in zip(asked, answers, strict=True):
        others = {name: value for name, value in answer.items() if name not in ("role", "content")}
        pairs.append({"human": question["content"], "gpt": answer["content"], **others})
    alternating = [turn for pair in zip(asked, answers, strict=True) for turn in pair]
    reader = RecordReader("messages", RecordRules(), multi_turn)
    of_pairs, of_turns = {"messages": pairs}, {"messages": alternating}
    assert encoded_or_not(of_pairs, reader) == encoded_or_not(of_turns, reader)
    assert reader.unread(of_pairs) == reader.unread(of_turns)


@given(row=rows(), multi_turn=st.sampled_from(["random", "last", "all"]), key=st.integers(0, 9))
@settings(max_examples=600, deadline=None)
def test_a_field_is_read_named_or_refused(
    row: dict[str, Any], multi_turn: MultiTurn, key: int
) -> None:
    before = copy.deepcopy(row)
    reader = RecordReader("auto", RecordRules(), multi_turn)
    record_format = format_of(row, {})
    assume(record_format is not None)
    assert record_format is not None
    try:
        record: Any = reader(row, key)
        encoded = encode_record(record, TOKENIZER)
    except (DataError, NothingToLearnError) as error:
        assert "\n" not in str(error)
        return
    assert row == before
    # A field that is not named is read: with another value, the row is another one.
    unread = reader.unread(row)
    names = names_in(row, record_format, {})
    for field, value in row.items():
        if value in (None, "", [], {}):
            continue
        assert (field in unread) == (field not in names.values())
    for name in unread - set(row):
        field, _, of_turn = name.partition("[].")
        turns = row[field] if isinstance(row[field], list) else [row[field]]
        assert any(of_turn in turn for turn in turns)
    ids, mask = encoded["input_ids"], encoded["response_mask"]
    if "messages" not in record:
        return
    # What is learned is what answers say that are to be learned, and all else is the template's.
    learned = {number for number, turn in enumerate(record["messages"]) if turn.get("learn")}
    learned = learned or {len(record["messages"]) - 1}
    for number in learned:
        turn = record["messages"][number]
        assert turn["role"] == "assistant" and turn.get("weight") != 0
        assert all(turn.get(name) in (None, True) for name in FLAGS)
    texts = [record["messages"][number]["content"] for number in sorted(learned)]
    assert TOKENIZER.decode([t for t, is_learned in zip(ids, mask, strict=True) if is_learned]) == (
        "".join(texts)
    )
    last = max(learned)
    rendered = TOKENIZER.apply_chat_template(
        [{"role": turn["role"], "content": turn["content"]} for turn in record["messages"][:last]],
        add_generation_prompt=True,
        tokenize=False,
    )
    whole = TOKENIZER(rendered, add_special_tokens=False)["input_ids"]
    # Prompt and answer meet at the boundary.
    begin = len(ids) - mask[::-1].index(False) if False in mask else 0
    assert ids[:begin] == whole
    # What changed the meaning of a turn and is not rendered has refused the row above.
    for turn in record["messages"][: last + 1]:
        assert not any(turn.get(name) for name in (*CALLS, *REASONING))


@pytest.mark.parametrize("record_format", list(REQUIRED))
def test_every_format_has_rows(record_format: KnownFormat) -> None:
    """Most rows above are of the format that they were made for, and readable."""
    found = 0

    @given(row=rows(record_format))
    @settings(max_examples=60, deadline=None, database=None)
    def count(row: dict[str, Any]) -> None:
        nonlocal found
        if format_of(row, {}) == record_format:
            try:
                RecordReader(record_format, RecordRules(), "last")(row, 0)
            except (DataError, NothingToLearnError):
                return
            found += 1

    count()
    assert found > 3
