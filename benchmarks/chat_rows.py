"""Chat rows of about 2 KB, the same on every machine, and a tokenizer that is trained on them."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROW_BYTES = 2000
NUM_MERGES = 8000
_SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|mdm_mask|>",
)
_SYLLABLES = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en")]


def texts(seed: int) -> Iterator[str]:
    """Yield texts of 100 to 2,500 letters without end: sentences of words as rare as real ones."""
    draw = random.Random(seed)
    # One vocabulary, whatever the seed.
    words_of = random.Random(0)
    words = ["".join(words_of.choices(_SYLLABLES, k=words_of.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    cumulative = list(_running_sums(weights))
    while True:
        chosen = draw.choices(words, cum_weights=cumulative, k=draw.randint(20, 440))
        pieces, begin = [], True
        for word in chosen:
            pieces.append(word.capitalize() if begin else word)
            end = draw.random()
            begin = end < 0.08
            pieces.append(".\n\n" if end < 0.01 else ". " if begin else ", " if end < 0.16 else " ")
        yield "".join(pieces).rstrip()


def _running_sums(values: list[float]) -> Iterator[float]:
    total = 0.0
    for value in values:
        total += value
        yield total


def write_shards(folder: Path, num_shards: int, rows_per_shard: int) -> list[Path]:
    """Write shards of `{"messages": [...]}`, each row with texts of its own."""
    import orjson

    folder.mkdir()
    paths = []
    for number in range(num_shards):
        source = texts(number + 1)
        rows = []
        for _ in range(rows_per_shard):
            prompt, response = next(source)[: ROW_BYTES // 4], next(source)
            messages = [{"role": "user", "content": prompt}]
            messages.append({"role": "assistant", "content": response})
            rows.append(orjson.dumps({"messages": messages}) + b"\n")
        path = folder / f"shard_{number:03}.jsonl"
        path.write_bytes(b"".join(rows))
        paths.append(path)
    return paths


def write_tokenizer(folder: Path) -> Any:
    """Train a byte-level BPE on 2,000 texts; it has LLaDA's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from llada_sft.data.records.chat_template import LLADA_CHAT_TEMPLATE

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    source = texts(0)
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_MERGES + 256 + len(_SPECIAL_TOKENS),
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((next(source) for _ in range(2000)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        chat_template=LLADA_CHAT_TEMPLATE,
    )
    fast.save_pretrained(folder)
    return fast
