"""config/pretrain.yaml at a tiny size: documents in pieces, packed, every token once."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llada_sft.demo.data import write_demo
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import WORKERS
from tests.distributed.training_workers import losses

pytestmark = pytest.mark.distributed
CONFIG = "config/pretrain.yaml"
TINY = [
    "model.init=random",
    "model.size={d_model: 32, n_layers: 2, n_heads: 2, mlp_hidden_size: 48}",
    "model.activation_checkpointing=none",
    "data.max_length=32",
    "data.max_tokens=64",
    "data.pack_buffer=5",
    "data.prefetch_steps=0",
    "train.precision=fp32",
    "train.accelerator=cpu",
    "train.validate_every_steps=3",
    "deepspeed.stage3_param_persistence_threshold=1000",
    "optim.warmup_steps=2",
    "optim.lr=1.0e-3",
    "slurm.gpus_per_node=0",
    "log.every_n_steps=1",
    "log.tensorboard=false",
]


def write_texts(folder: Path, sizes: list[int]) -> list[list[int]]:
    """Write shards of documents; return how many letters each has."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    lengths = []
    for shard, size in enumerate(sizes):
        lengths.append([draw.choice([3, 20, 31, 32, 33, 64, 100, 150]) for _ in range(size)])
        rows = [{"text": "".join(draw.choices("abcdefgh", k=count))} for count in lengths[-1]]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"shard_{shard}.jsonl").write_text(lines)
    return lengths


def overrides_of(tmp_path: Path) -> list[str]:
    write_demo(tmp_path / "demo")
    texts = tmp_path / "texts"
    # As many random lengths as can be: at 1 % this test would see none.
    return [
        *TINY,
        f"model.path={tmp_path / 'demo/tokenizer'}",
        f"data.train={texts}",
        "data.random_length=0.5",
    ]


@pytest.mark.timeout(300)
def test_three_steps_and_a_run_stopped_within_a_document(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", [14, 9])
    write_texts(tmp_path / "held_out", [6])
    overrides = [*overrides_of(tmp_path), f"data.validation={tmp_path / 'held_out'}"]
    # The config's own share, and the paper's number of steps of a test.
    shipped = [*overrides, "data.random_length=0.01", "train.max_steps=3"]
    results = run_on_ranks(
        f"{WORKERS}:train_each", 2, 200,
        config_file=CONFIG, runs=[(str(tmp_path / "shipped"), shipped)],
    )  # fmt: skip
    assert results[0] == [3]
    stops = [2, 5]
    results = run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=stops,
    )  # fmt: skip
    assert results[0]["outcomes"] == ["finished", *["stopped", "finished"] * len(stops)]
    whole = losses(tmp_path / "whole")
    assert len(whole) > 8
    for stop in stops:
        assert losses(tmp_path / f"stopped_{stop}") == whole, f"stopped at {stop}"


def test_every_token_is_learned_once_whatever_the_ranks(tmp_path: Path) -> None:
    """On two ranks to a step within documents, then on three: the same pieces, none twice."""
    lengths = write_texts(tmp_path / "texts", [12, 9, 7])
    overrides = overrides_of(tmp_path)
    seen: Counter[tuple[Any, ...]] = Counter()
    for world_size, stop_at in ((2, 4), (3, 0)):
        ranks = run_on_ranks(
            f"{WORKERS}:trained_pieces", world_size, 150,
            folder=str(tmp_path / "run"), config_file=CONFIG, overrides=overrides, stop_at=stop_at,
        )  # fmt: skip
        for pieces in ranks:
            for file, line, part, num_learned in pieces:
                seen[file, line, part] += 1
                seen[file, line] += num_learned
    assert {count for key, count in seen.items() if len(key) == 3} == {1}
    # Each letter, and one EOS.
    assert {key: count for key, count in seen.items() if len(key) == 2} == {
        (f"shard_{shard}.jsonl", line): count + 1
        for shard, of_shard in enumerate(lengths)
        for line, count in enumerate(of_shard, start=1)
    }
