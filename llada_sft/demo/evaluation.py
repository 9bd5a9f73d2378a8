"""How well a model answers the demo's held-out prompts."""

import json
from pathlib import Path

from llada_sft.answering.answerer import answer
from llada_sft.config.schema import Config
from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.generation import SamplerSettings
from llada_sft.model.network import Network

# The longest answer has five letters; one more position lets every answer end.
SETTINGS = SamplerSettings(steps=6, gen_length=6, block_length=6)


def exact_match(
    model: Network, config: Config, settings: SamplerSettings = SETTINGS
) -> tuple[float, list[tuple[str, str, str]]]:
    """Answer all held-out prompts.

    Args:
        model: In evaluation mode.
        config: Its training's: the tokenizer, and the rows of `data.validation`.
        settings: The sampler's.

    Returns:
        The share of answers that equal the record's response in every letter, and (prompt,
        expected, answer) of each.
    """
    tokenizer = load_tokenizer(Path(config.model.path), model.config.mask_token_id)
    records = [
        json.loads(line)
        for folder in config.data.validation_sets.values()
        for path in sorted(Path(folder).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    answers = answer(model, tokenizer, [record["prompt"] for record in records], settings)
    rows = [
        (record["prompt"], record["response"], text)
        for record, text in zip(records, answers, strict=True)
    ]
    return sum(expected == text for _, expected, text in rows) / len(rows), rows
