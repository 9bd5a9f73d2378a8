"""Prompts are what training has, without a second BOS; answers end where a turn does."""

from typing import Any

import pytest

from llada_sft.data.records import encode_prompt
from llada_sft.demo.data import make_tokenizer
from llada_sft.evaluation.texts import Texts

TURNS = [
    {"role": "user", "content": "reverse abc"},
    {"role": "assistant", "content": "cba"},
    {"role": "user", "content": "reverse bcd"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def test_prompt_ids_are_those_of_the_chat_template(tokenizer: Any) -> None:
    texts = Texts(tokenizer, chat=True)
    ids = texts.encode(texts.prompt(TURNS))
    rendered = tokenizer.apply_chat_template(TURNS, tokenize=True, add_generation_prompt=True)
    assert ids == list(getattr(rendered, "input_ids", rendered))
    assert ids == encode_prompt(TURNS, tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_start_of_an_answer_follows_the_assistant_s_header(tokenizer: Any) -> None:
    texts = Texts(tokenizer, chat=True)
    prompt = texts.prompt([*TURNS, {"role": "assistant", "content": "dc"}], False)
    assert prompt == texts.prompt(TURNS) + "dc"


class WithBos:
    """A tokenizer that puts a BOS before each text, as some base models' do."""

    bos_token, eos_token = "<s>", "</s>"

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": 0, "</s>": 1}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        own = [0] if text.startswith("<s>") else []
        return [0] * add_special_tokens + own + [len(text)]


def test_a_text_with_a_bos_gets_no_other() -> None:
    texts = Texts(WithBos(), chat=False)
    assert texts.encode("a") == [0, 1]
    assert texts.encode("<s>a") == [0, 4]


def test_an_answer_ends_at_the_first_eos_or_end_of_its_turn(tokenizer: Any) -> None:
    ids = tokenizer.convert_tokens_to_ids
    said = ids(["c", "b", "<|eot_id|>", "a", "<|endoftext|>", "a"])
    assert Texts(tokenizer, chat=True).cut(said, ()) == ("cb", "cb")
    # Only chat models end turns.
    assert Texts(tokenizer, chat=False).cut(said, ()) == ("cba", "cba")
    # The model's EOS need not be the tokenizer's.
    assert Texts(tokenizer, chat=False, eos_token_id=ids("b")).cut(said, ()) == ("c", "c")


def test_stop_strings_cut_an_answer_and_the_whole_is_kept(tokenizer: Any) -> None:
    said = tokenizer.convert_tokens_to_ids(["c", " ", "<|eot_id|>", "a", "b"])
    texts = Texts(tokenizer, chat=False)
    assert texts.cut(said, ["b"]) == ("c a", "c ab")
    assert texts.cut(said, ["<|eot_id|>"]) == ("c ", "c ab")
    assert texts.cut(said, ["x", ""]) == ("c ab", "c ab")
