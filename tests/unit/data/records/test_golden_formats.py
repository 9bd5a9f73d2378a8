"""Token ids of every format, for the demo's tokenizer and a Llama-3-style one; and of any chat.

tests/golden/formats/cases.json has the text of each case beside the ids, to be read by eye.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.record_formats import REQUIRED, MultiTurn
from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.chat_template import LLADA_CHAT_TEMPLATE, OFFICIAL_CHAT_TEMPLATE
from llada_sft.data.records.chat_tokens import (
    ChatLayout,
    encode_prompt,
    encode_record,
    set_layout,
)
from llada_sft.data.records.formats import RecordRules
from llada_sft.data.records.normalize import RecordReader
from llada_sft.demo.data import make_tokenizer

FOLDER = Path(__file__).parents[3] / "golden" / "formats"
CASES = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
TOKENIZERS = {"demo": make_tokenizer(), "llama3_style": load_tokenizer(FOLDER / "llama3_style")}
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def ids_of(text: str, tokenizer: Any, typed: bool = False) -> list[int]:
    """The ids of a text; `typed`: with special tokens as the characters that they are."""
    found: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=typed)[
        "input_ids"
    ]
    return found


class Layout:
    """Ids of a layout by hand: its own special tokens, and typed text between them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.ids, self.text = tokenizer, list[int](), ""

    def say(self, text: str) -> None:
        self.text += text

    def token(self, token: str) -> None:
        self.ids += self.end()
        self.ids.append(self.tokenizer.convert_tokens_to_ids(token))

    def turn(self, role: str, content: str) -> None:
        self.header(role)
        self.say(content)
        self.token("<|eot_id|>")

    def header(self, role: str) -> None:
        self.token("<|start_header_id|>")
        self.say(role)
        self.token("<|end_header_id|>")
        self.say("\n\n")

    def end(self) -> list[int]:
        """What is left of the text."""
        text, self.text = self.text, ""
        return ids_of(text, self.tokenizer, typed=True)

    def take(self) -> list[int]:
        ids, self.ids = self.ids + self.end(), []
        return ids


@pytest.mark.parametrize(
    ("case", "which"),
    [
        pytest.param(case, which, id=f"{case['name']}-{which}")
        for case in CASES
        for which in TOKENIZERS
        if which in case["pieces"][0]
    ],
)
def test_golden_ids(case: dict[str, Any], which: str) -> None:
    pieces, tokenizer = case["pieces"], TOKENIZERS[which]
    pairs = [(pair, piece["learned"]) for piece in pieces for pair in piece[which]]
    # What stands beside an id is its token.
    assert tokenizer.convert_ids_to_tokens([token for (token, _), _ in pairs]) == [
        name for (_, name), _ in pairs
    ]
    data = case["data"]
    reader = RecordReader(
        data["format"], RecordRules(data.get("fields", {})), data.get("multi_turn", "random")
    )
    encoded = encode_record(reader(case["record"], data.get("key", 0)), tokenizer)
    assert encoded["input_ids"] == [token for (token, _), _ in pairs]
    assert encoded["response_mask"] == [learned for _, learned in pairs]


def test_there_are_golden_ids_of_every_format() -> None:
    for which in TOKENIZERS:
        formats = {case["data"]["format"] for case in CASES if which in case["pieces"][0]}
        # Rows of token ids have theirs.
        assert formats == set(REQUIRED) - {"tokens"}


def test_a_case_has_a_boundary_that_the_tokenizer_would_merge() -> None:
    tokenizer = TOKENIZERS["llama3_style"]
    (case,) = [case for case in CASES if "would merge" in case["name"]]
    prompt, response = (piece["text"] for piece in case["pieces"])
    apart = ids_of(prompt, tokenizer) + ids_of(response, tokenizer)
    assert ids_of(prompt + response, tokenizer) != apart
    assert [token for piece in case["pieces"] for token, _ in piece["llama3_style"]] == apart


# Letters that both tokenizers know, blanks at the ends, and what may merge or be a special token.
CONTENTS = st.one_of(
    st.text("abcdefgh \n", max_size=12),
    st.lists(
        st.sampled_from(["\n", "\n\n", " ", "a", "assistant", "<|eot_id|>", HEADER, "é", "🙂"]),
        max_size=5,
    ).map("".join),
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENTS}
    ),
    min_size=1,
    max_size=7,
)


def answers_of(turns: list[dict[str, str]]) -> list[int]:
    return [
        number
        for number, turn in enumerate(turns)
        if number > 0 and turn["role"] == "assistant" and turn["content"].strip()
    ]


@pytest.mark.parametrize("which", TOKENIZERS)
@given(turns=TURNS, key=st.integers(0, 2**64 - 1))
def test_prompt_and_response_meet_exactly(
    which: str, turns: list[dict[str, str]], key: int
) -> None:
    """The prompt is the one that is sampled from, and the response is the text to the letter."""
    answers, tokenizer = answers_of(turns), TOKENIZERS[which]
    if not answers:
        return
    chosen = answers[key % len(answers)]
    record = RecordReader("messages", RecordRules(), "random")({"messages": turns}, key)
    encoded = encode_record(record, tokenizer)
    ids, mask = encoded["input_ids"], encoded["response_mask"]
    length = mask.index(True)
    assert mask == [False] * length + [True] * (len(ids) - length)
    # The prompt's ids are a prefix, and those that sampling asks the model with.
    assert ids[:length] == encode_prompt(turns[:chosen], tokenizer)
    # No header stands behind the response.
    assert ids[length:] == ids_of(turns[chosen]["content"], tokenizer, typed=True)


@pytest.mark.parametrize("which", TOKENIZERS)
@given(turns=TURNS)
def test_every_answer_is_learned_where_it_stands(which: str, turns: list[dict[str, str]]) -> None:
    answers, tokenizer = answers_of(turns), TOKENIZERS[which]
    if not answers:
        return
    record = RecordReader("messages", RecordRules(), "all")({"messages": turns}, 0)
    encoded = encode_record(record, tokenizer)
    expected_ids: list[int] = []
    expected_mask: list[bool] = []
    done = 0
    layout = Layout(tokenizer)
    for number in answers:
        # What stands between two answers is a piece of its own.
        layout.token("<|eot_id|>" if done else "<|startoftext|>")
        for turn in turns[done:number]:
            layout.turn(turn["role"], turn["content"].strip())
        layout.header("assistant")
        prompt = layout.take()
        content = turns[number]["content"]
        last = number == answers[-1]
        learned = ids_of(content if last else content.strip(), tokenizer, typed=True)
        expected_ids += prompt + learned
        expected_mask += [False] * len(prompt) + [True] * len(learned)
        done = number + 1
    assert encoded["input_ids"] == expected_ids
    assert encoded["response_mask"] == expected_mask


@given(turns=TURNS)
@pytest.mark.parametrize("template", [LLADA_CHAT_TEMPLATE, OFFICIAL_CHAT_TEMPLATE])
def test_llada_s_layout_is_what_jinja_makes_of_the_templates(
    template: str, turns: list[dict[str, str]]
) -> None:
    tokenizer = copy.deepcopy(TOKENIZERS["llama3_style"])
    assert tokenizer.chat_template == OFFICIAL_CHAT_TEMPLATE
    set_layout(tokenizer, ChatLayout(tokenizer, "token"))
    rendered = tokenizer.apply_chat_template(
        turns, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert rendered.endswith(HEADER)
    assert encode_prompt(turns, tokenizer) == ids_of(rendered, tokenizer)


@pytest.mark.parametrize("multi_turn", ["last", "random", "all"])
def test_another_template_is_rendered_by_jinja(multi_turn: MultiTurn) -> None:
    """ChatML, which has a header at the end only where it is asked for one."""
    tokenizer = copy.deepcopy(TOKENIZERS["llama3_style"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    turns = [
        {"role": "user", "content": "a "},
        {"role": "assistant", "content": " b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    record = RecordReader("messages", RecordRules(), multi_turn)({"messages": turns}, 0)
    encoded = encode_record(record, tokenizer)
    first, second = "<|user|>a <|end|><|assistant|>", "<|end|><|user|>c<|end|><|assistant|>"
    pieces = {
        "last": [(False, f"{first} b{second}"), (True, "d")],
        "random": [(False, first), (True, " b")],
        "all": [(False, first), (True, " b"), (False, second), (True, "d")],
    }[multi_turn]
    parts = [(learned, ids_of(text, tokenizer)) for learned, text in pieces]
    assert encoded["input_ids"] == [token for _, ids in parts for token in ids]
    assert encoded["response_mask"] == [learned for learned, ids in parts for _ in ids]
