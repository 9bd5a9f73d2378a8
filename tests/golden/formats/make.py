"""Makes what lies beside it: a Llama-3-style tokenizer, and golden token ids of every format.

    python tests/golden/formats/make.py

What a record becomes is written here by hand, as text, piece by piece: the pieces that are learned
and the others. The tokenizers turn the pieces into ids; what encodes records has no part in it.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llada_sft.data.records.chat_template import OFFICIAL_CHAT_TEMPLATE
from llada_sft.demo.data import make_tokenizer

HERE = Path(__file__).parent
# Llama 3's.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = """


The user asks and the assistant answers. A system turn says how the assistant answers.

What is two and two? It is four. What is the answer to the first question, and what to the second?

To reverse a word is to write its letters from the last to the first.


That is what this assistant learns from the users' questions and its own answers.
"""
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"]
SPECIAL_OF_CHATS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

BOS = "<|startoftext|>"
ASK = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def said(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


DIALOGUE = [
    turn("system", "abc"),
    turn("user", "reverse ab"),
    turn("assistant", "ba"),
    turn("user", " reverse cd\n\n"),
    turn("assistant", " dc"),
    turn("user", "reverse ef"),
    turn("assistant", "fe "),
    turn("user", "reverse gh"),
]
FIRST = BOS + said("system", "abc") + said("user", "reverse ab") + ASK
SECOND = FIRST + "ba<|eot_id|>" + said("user", "reverse cd") + ASK
THIRD = SECOND + "dc<|eot_id|>" + said("user", "reverse ef") + ASK

# name, keys of the data section, record, pieces of text: (learned, text).
Case = tuple[str, dict[str, Any], dict[str, Any], list[tuple[bool, str]]]
ONE_TURN = [(False, BOS + said("user", "reverse abc") + ASK), (True, "cba")]
WITH_SYSTEM = [
    (False, BOS + said("system", "abc") + said("user", "reverse ab") + ASK),
    (True, "ba"),
]
FOR_BOTH: list[Case] = [
    (
        "messages",
        {"format": "messages"},
        {"messages": [turn("user", "reverse abc"), turn("assistant", "cba")], "id": 7},
        ONE_TURN,
    ),
    (
        "messages with a system turn",
        {"format": "messages"},
        {"messages": DIALOGUE[:3]},
        WITH_SYSTEM,
    ),
    (
        "messages under other names",
        {
            "format": "messages",
            "fields": {"messages": "dialog", "role": "who", "content": "says", "system": "rules"},
        },
        {
            "rules": "abc",
            "dialog": [{"who": "user", "says": "reverse ab"}, {"who": "assistant", "says": "ba"}],
        },
        WITH_SYSTEM,
    ),
    (
        "sharegpt",
        {"format": "sharegpt"},
        {
            "conversations": [
                {"from": "system", "value": "abc"},
                {"from": "human", "value": "reverse ab"},
                {"from": "gpt", "value": "ba"},
            ]
        },
        WITH_SYSTEM,
    ),
    (
        "sharegpt with a system field",
        {"format": "sharegpt"},
        {
            "system": "abc",
            "conversations": [
                {"from": "human", "value": "reverse ab"},
                {"from": "gpt", "value": "ba"},
            ],
        },
        WITH_SYSTEM,
    ),
    (
        "prompt and response",
        {"format": "prompt_response"},
        {"prompt": "reverse abc", "response": "cba", "text": "reverse abc cba"},
        ONE_TURN,
    ),
    (
        "prompt and response under other names, with a system prompt",
        {
            "format": "prompt_response",
            "fields": {"prompt": "question", "response": "answer"},
        },
        {"question": "reverse ab", "answer": "ba", "system": "abc"},
        WITH_SYSTEM,
    ),
    (
        "alpaca without an input",
        {"format": "alpaca"},
        {"instruction": "reverse abc", "input": "", "output": "cba"},
        ONE_TURN,
    ),
    (
        "alpaca with an input",
        {"format": "alpaca"},
        {"instruction": "reverse", "input": "abc", "output": "cba"},
        [(False, BOS + said("user", "reverse\n\nabc") + ASK), (True, "cba")],
    ),
    ("text", {"format": "text"}, {"text": "abc\n\ncba"}, [(False, BOS), (True, "abc\n\ncba")]),
    (
        "text under another name, beside fields of a chat",
        {"format": "text", "fields": {"text": "prompt"}},
        {"prompt": " abc", "response": "none of it"},
        [(False, BOS), (True, " abc")],
    ),
    (
        "the response is taken to the letter, the prompt as the template has it",
        {"format": "prompt_response"},
        {"prompt": " a\n\n", "response": " b\n\n"},
        [(False, BOS + said("user", "a") + ASK), (True, " b\n\n")],
    ),
    (
        "several turns, the last is learned",
        {"format": "messages", "multi_turn": "last"},
        {"messages": DIALOGUE},
        [(False, THIRD), (True, "fe ")],
    ),
    (
        "several turns, the first of three is drawn",
        {"format": "messages", "multi_turn": "random", "key": 3},
        {"messages": DIALOGUE},
        [(False, FIRST), (True, "ba")],
    ),
    (
        "several turns, the second of three is drawn",
        {"format": "messages", "multi_turn": "random", "key": 7},
        {"messages": DIALOGUE},
        [(False, SECOND), (True, " dc")],
    ),
    (
        "several turns, the third of three is drawn",
        {"format": "messages", "multi_turn": "random", "key": 11},
        {"messages": DIALOGUE},
        [(False, THIRD), (True, "fe ")],
    ),
    (
        "several turns, all are learned",
        {"format": "messages", "multi_turn": "all"},
        {"messages": DIALOGUE},
        [
            (False, FIRST),
            (True, "ba"),
            (False, "<|eot_id|>" + said("user", "reverse cd") + ASK),
            (True, "dc"),
            (False, "<|eot_id|>" + said("user", "reverse ef") + ASK),
            (True, "fe "),
        ],
    ),
    (
        "an answer to nothing and an empty one are not learned",
        {"format": "messages", "multi_turn": "all"},
        {
            "messages": [
                turn("assistant", "a"),
                turn("user", "b"),
                turn("assistant", ""),
                turn("user", "c"),
                turn("assistant", "d"),
            ]
        },
        [
            (
                False,
                BOS
                + said("assistant", "a")
                + said("user", "b")
                + said("assistant", "")
                + said("user", "c")
                + ASK,
            ),
            (True, "d"),
        ],
    ),
]
# The demo's tokenizer knows eight letters.
FOR_ONE: list[Case] = [
    (
        "words",
        {"format": "messages"},
        {"messages": [turn("user", "What is two and two?"), turn("assistant", "It is four.")]},
        [(False, BOS + said("user", "What is two and two?") + ASK), (True, "It is four.")],
    ),
    (
        "line ends on both sides of the boundary, which a tokenizer would merge",
        {"format": "prompt_response"},
        {"prompt": "What?", "response": "\nThat."},
        [(False, BOS + said("user", "What?") + ASK), (True, "\nThat.")],
    ),
    (
        "letters of several bytes",
        {"format": "alpaca"},
        {"instruction": "Übersetze", "input": "four", "output": "四 🙂"},
        [(False, BOS + said("user", "Übersetze\n\nfour") + ASK), (True, "四 🙂")],
    ),
    (
        "special tokens in a text",
        {"format": "text"},
        {"text": "<|startoftext|>The user<|endoftext|>"},
        [(False, "<|startoftext|>"), (True, "The user<|endoftext|>")],
    ),
]


def make_llama3_style() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of a few merges; its special tokens stand behind all others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 100, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_special_tokens(SPECIAL + SPECIAL_OF_CHATS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        additional_special_tokens=SPECIAL_OF_CHATS,
        chat_template=OFFICIAL_CHAT_TEMPLATE,
    )


def golden(case: Case, tokenizers: dict[str, Any]) -> str:
    """Write a case as JSON; under each piece of text its ids, each beside its token, in a line."""
    name, data, record, pieces = case
    lines = []
    for learned, text in pieces:
        ids = {}
        for which, tokenizer in tokenizers.items():
            found = tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = tokenizer.convert_ids_to_tokens(found)
            ids[which] = [list(pair) for pair in zip(found, tokens, strict=True)]
        piece = [("learned", learned), ("text", text), *ids.items()]
        inner = ",\n    ".join(f"{dump(key)}: {dump(value)}" for key, value in piece)
        lines.append("   {" + inner + "}")
    return (
        f'{{"name": {dump(name)},\n  "data": {dump(data)},\n  "record": {dump(record)},\n'
        '  "pieces": [\n' + ",\n".join(lines) + "]}"
    )


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Write the tokenizer and the cases."""
    llama3_style = make_llama3_style()
    llama3_style.save_pretrained(HERE / "llama3_style")
    both = {"demo": make_tokenizer(), "llama3_style": llama3_style}
    one = {"llama3_style": llama3_style}
    cases = [golden(case, both) for case in FOR_BOTH] + [golden(case, one) for case in FOR_ONE]
    (HERE / "cases.json").write_text("[" + ",\n ".join(cases) + "]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
