"""A tiny random model with a tokenizer, and tasks with a file of words: nothing is downloaded."""

import json
from pathlib import Path

import torch

from llada_sft.demo.data import make_tokenizer
from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.export import export_checkpoint, network_tensors

WORDS = ("abc", "bcd", "hgf", "ace", "dcb", "fed", "gab", "bad", "cab", "dab", "fab")
GENERATIVE = """
task: reverse
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "reverse {{{{word}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [" "], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
CHOICE = """
task: choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "reverse {{{{word}}}} "
doc_to_target: 0
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
ROLLING = """
task: text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{word}}}}"
metric_list: [{{metric: byte_perplexity}}]
metadata: {{version: 1.0}}
"""


def write_tasks(folder: Path) -> Path:
    """Write the tasks `reverse`, `choose` and `text` into a folder, and return it."""
    folder.mkdir()
    rows = [
        {"word": word, "answer": word[::-1], "choices": [word[::-1], word, word[:2]]}
        for word in WORDS
    ]
    data = folder / "words.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("reverse", GENERATIVE), ("choose", CHOICE), ("text", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


def write_model(folder: Path, seed: int = 3) -> Path:
    """Write a model whose answers depend on what it is asked, and return its folder."""
    tokenizer = make_tokenizer()
    config = NetworkConfig.from_size(
        d_model=16,
        n_layers=1,
        n_heads=2,
        mlp_hidden_size=24,
        max_sequence_length=64,
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = build_model(config, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
        # Letters and spaces only.
        model.get_output_embeddings().weight[: tokenizer.convert_tokens_to_ids(" ")] = 0.0
    own = folder.with_name(f"{folder.name}_tokenizer")
    tokenizer.save_pretrained(own)
    export_checkpoint(network_tensors(model), config, own, folder, torch.float32)
    return folder
