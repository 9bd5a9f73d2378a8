"""Shards with damage or without, read as a run's only rank reads them: for the tests of both."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from backports import zstd

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import StepSize
from llada_sft.demo.data import make_tokenizer
from llada_sft.errors import DataError
from tests.unit.data.batches import examples_of

ROOT = Path(__file__).parents[3]
IDS = TokenIds(vocab_size=20, eos_token_id=1, mask_token_id=5)
KINDS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda text: text,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstd.compress,
}
Row = tuple[str, int, str]


def good(word: str) -> bytes:
    """A row that can be used; its response is the word backwards."""
    return b'{"prompt": "reverse %s", "response": "%s"}' % (word.encode(), word[::-1].encode())


class Found(NamedTuple):
    """What came of reading two epochs.

    Attributes:
        epochs: (file, line, response) of each example of an epoch, sorted.
        counts: What became of the rows of the first.
        quarantine: (file, line, byte, reason, message) of each entry, in order of their places.
        error: The line that ended it.
    """

    epochs: list[list[Row]]
    counts: RowCounts
    quarantine: list[tuple[str, int, int, str, str]]
    error: str | None


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write shards; a name says how its text is stored."""
    (folder / "train").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "train" / name).write_bytes(KINDS[name[name.index(".") :]](text))
    return folder / "train"


def steps_of(folder: Path, **settings: Any) -> StepDataset:
    """Open all shards of a folder, with the shipped hook; bad rows are allowed."""
    defaults = {
        "train": f"{folder}/train",
        "hook": f"{ROOT}/utils/process_data.py",
        "max_length": 32,
        "end": 1,
        "max_bad_fraction": 1.0,
        "cache_dir": f"{folder}/cache",
    }
    config = DataConfig(**defaults | settings)
    sources, size = list_sources(config, epochs=2), StepSize(1, 1)
    quarantine = folder / "quarantine" / "rank_0.jsonl"
    return StepDataset(config, folder, IDS, sources, 3, size, quarantine=quarantine)


def read(folder: Path, **settings: Any) -> Found:
    """Read all shards of a folder as a run's only rank does."""
    tokenizer, error = make_tokenizer(), None
    epochs: list[list[Row]] = [[], []]
    counts = RowCounts()
    try:
        for step in steps_of(folder, **settings):
            counts += step.rows if step.epoch == 0 else RowCounts()
            for example in (one for batch in step.micro_batches for one in examples_of(batch)):
                response = tokenizer.decode(example.input_ids[example.response_mask][:-1])
                epochs[step.epoch].append((example.file, example.line, response))
    except DataError as caught:
        error = str(caught)
    return Found([sorted(epoch) for epoch in epochs], counts, quarantined(folder), error)


def quarantined(folder: Path) -> list[tuple[str, int, int, str, str]]:
    path = folder / "quarantine" / "rank_0.jsonl"
    entries = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    root = f"{folder}/train/"
    keys = ("line", "byte", "reason", "message")
    return sorted((one["file"].removeprefix(root), *(one[key] for key in keys)) for one in entries)
