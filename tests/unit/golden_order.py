"""What reaches the network, to the bit, as a number for each way of reading: order, noise, weights.

    python -m tests.unit.golden_order    # writes tests/golden/order.json

The file is written once. Whoever changes the order of rows or the noise breaks the resume of every
earlier run: checkpoints hold places in both.
"""

import json
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from llada_sft.config.sections.data import DataConfig, SourceConfig
from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.local_step import StepSize
from llada_sft.training.consensus import Report
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import NoiseSource
from tests.unit.data.stepping import WholePositions

GOLDEN = Path(__file__).parents[1] / "golden" / "order.json"
IDS = TokenIds(vocab_size=1000, eos_token_id=999, mask_token_id=5)
# Rows of each file of two sources: none, few and many; more than are looked up together.
FILES = {"a": (3, 40, 0, 1100, 1), "b": (17, 5, 90)}
EPOCHS = 2
HOOK = """
import random

def process_data(record, tokenizer, max_length):
    def one(part):
        tokens = [record["id"] % 900 + 10] * (2 + (record["id"] * 7 + part) % 37)
        tokens[-1] = 10 + random.randrange(900)
        return {"input_ids": tokens, "response_mask": [i > 0 for i in range(len(tokens))]}
    return [one(part) for part in range(record["parts"])]
"""
WAYS: dict[str, dict[str, Any]] = {
    "in the order of the files": {"shuffle": False},
    "shuffled": {},
    "packed": {"batching": "packed", "max_tokens": 128},
    "packed, a short look-ahead": {"batching": "packed", "max_tokens": 64, "pack_buffer": 4},
    "a growing tail": {"end": "batch_max"},
    "of similar length": {"end": "batch_max", "group_by_length": True, "pack_buffer": 8},
    "mixed by examples": {"mix": "examples"},
    "mixed by tokens, packed": {"mix": "tokens", "batching": "packed", "max_tokens": 96},
}
# Which rank of how many, and after which step the reading is interrupted and resumed.
PLACES = {"one rank": (0, 1, None), "rank 1 of 2": (1, 2, None), "resumed": (0, 1, 11)}


def write_files(folder: Path) -> None:
    (folder / "hook.py").write_text(HOOK)
    for source, sizes in FILES.items():
        (folder / source).mkdir()
        for number, rows in enumerate(sizes):
            records = [
                {"id": 31 * number + row, "parts": (row % 5 != 3) * (1 + row % 2)}
                for row in range(rows)
            ]
            text = "".join(json.dumps(record) + "\n" for record in records)
            (folder / source / f"{number}.jsonl").write_text(text)


def micro_batches(folder: Path, way: str, place: str) -> Iterator[MicroBatch]:
    """Yield all micro-batches of a rank, masked as if it were alone in the batch."""
    settings = dict(WAYS[way])
    rank, world_size, stop = PLACES[place]
    mix = settings.pop("mix", None)
    train: Any = str(folder / "a")
    if mix is not None:
        settings["mix_by"] = mix
        train = {
            "a": SourceConfig(path=str(folder / "a"), weight=1.0, epochs=1),
            "b": SourceConfig(path=str(folder / "b"), weight=2.0, epochs=4),
        }
    defaults = {"end": 1, "max_length": 50, "cache_dir": str(folder / "cache")}
    config = DataConfig(train=train, hook=str(folder / "hook.py"), **(defaults | settings))
    sources = [s.of_rank(rank, world_size) for s in list_sources(config, epochs=EPOCHS)]
    noise = NoiseSource(ObjectiveConfig(), 3, IDS.mask_token_id, rank, world_size)

    def steps(epoch: int, positions: Any = None) -> WholePositions:
        size = StepSize(2, 2)
        return WholePositions(
            config, Path("none"), IDS, sources, 3, size, epoch=epoch, positions=positions
        )

    reading, number = iter(steps(0)), 0
    while (step := next(reading, None)) is not None:
        counts = Report(examples=max(1, step.num_examples))
        yield from noise.micro_batches(step, counts, number)
        number += 1
        if number == stop:
            reading = iter(steps(step.epoch, step.positions))


def digest(folder: Path, way: str, place: str) -> dict[str, Any]:
    """Return a number for all of it, how many rows there were, and the first of them."""
    hashed, rows = blake2b(digest_size=16), []
    for batch in micro_batches(folder, way, place):
        for tensor in (batch.noisy_ids, batch.positions, batch.targets, batch.coefficients):
            hashed.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        hashed.update(repr(batch.rows).encode())
        rows += batch.rows
    first = " ".join(f"{file}:{line}" for file, line in islice(rows, 12))
    return {"digest": hashed.hexdigest(), "examples": len(rows), "first": first}


def main() -> None:
    from unittest.mock import patch

    with (
        tempfile.TemporaryDirectory() as name,
        patch("llada_sft.data.examples.encode.load_tokenizer", lambda *_: None),
    ):
        folder = Path(name)
        write_files(folder)
        golden = {f"{way}; {place}": digest(folder, way, place) for way in WAYS for place in PLACES}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
