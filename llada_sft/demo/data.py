"""The demo's dataset and tokenizer, made on the spot and the same on every machine.

The task: `reverse abcde` -> `edcba`, for three to five of eight letters. All 37,376 words are
shuffled once; some are held out, so that what is measured there was never seen.

    demo/data/train/shard_00N.jsonl      prompt/response records
    demo/data/heldout/shard_000.jsonl
    demo/tokenizer/                      letters, and LLaDA's special tokens
"""

import itertools
import json
import random
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llada_sft.data.records.chat_template import LLADA_CHAT_TEMPLATE

LETTERS = "abcdefgh"
NUM_SHARDS = 4
NUM_HELD_OUT = 400
_SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|mdm_mask|>",
)
_WORDS = ("user", "assistant", "system", "reverse", " ", "\n\n")


def make_records() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the training and the held-out records; no word is in both."""
    words = [
        "".join(letters)
        for length in (3, 4, 5)
        for letters in itertools.product(LETTERS, repeat=length)
    ]
    random.Random(0).shuffle(words)
    records = [{"prompt": f"reverse {word}", "response": word[::-1]} for word in words]
    return records[NUM_HELD_OUT:], records[:NUM_HELD_OUT]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each letter and for each word of the prompt's frame."""
    vocabulary = [*_SPECIAL_TOKENS, *_WORDS, *LETTERS]
    tokenizer = Tokenizer(
        models.WordLevel({token: number for number, token in enumerate(vocabulary)}, " ")
    )
    frame = Regex(r"user|assistant|system|reverse|\n\n|.")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(frame, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        additional_special_tokens=[
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        chat_template=LLADA_CHAT_TEMPLATE,
    )


def write_demo(folder: Path) -> None:
    """Write dataset and tokenizer below a folder."""
    train, held_out = make_records()
    for shard in range(NUM_SHARDS):
        _write_jsonl(folder / f"data/train/shard_{shard:03}.jsonl", train[shard::NUM_SHARDS])
    _write_jsonl(folder / "data/heldout/shard_000.jsonl", held_out)
    make_tokenizer().save_pretrained(folder / "tokenizer")


def _write_jsonl(path: Path, records: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    write_demo(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
