"""A rank's steps of shards whose records say how many examples they are: for the tests of both."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.rows.position import Positions
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import LocalStep, StepSize
from tests.unit.data.batches import examples_of

IDS = TokenIds(vocab_size=1000, eos_token_id=999, mask_token_id=998)

# A record is {"id": n, "parts": k}: k examples; k = 0 leaves the row out, and an example whose
# number is in "long" is longer than max_length.
HOOK = """
def process_data(record, tokenizer, max_length):
    def one(part):
        response = [part] * (1 + 100 * (part in record.get("long", [])))
        return {
            "input_ids": [record["id"], *response],
            "response_mask": [False] + [True] * len(response),
        }
    return [one(part) for part in range(record["parts"])]
"""

Seen = list[tuple[int, int]]


def write(folder: Path, files: Sequence[Sequence[int | dict[str, object]]]) -> DataConfig:
    """Write shards; an item of a file is a record, or how many examples a row makes."""
    (folder / "hook.py").write_text(HOOK)
    (folder / "train").mkdir()
    for number, rows in enumerate(files):
        records = [
            row if isinstance(row, dict) else {"id": 100 * number + line, "parts": row}
            for line, row in enumerate(rows)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "train" / f"{number}.jsonl").write_text(text)
    return DataConfig(
        train=str(folder / "train"), hook=str(folder / "hook.py"), max_length=50, end=1
    )


class WholePositions(StepDataset):
    """Each step with the positions of all files, as who follows the steps knows them."""

    def __iter__(self) -> Iterator[LocalStep]:
        known: Positions = {}
        for step in super().__iter__():
            known = known | step.positions
            yield replace(step, positions=known)


def dataset(
    config: DataConfig,
    size: StepSize,
    epochs: int = 1,
    epoch: int = 0,
    positions: Positions | None = None,
    files: list[Path] | None = None,
    quarantine: Path | None = None,
) -> StepDataset:
    (source,) = list_sources(config, epochs)
    if files is not None:
        source = replace(source, shards=tuple(one for one in source.shards if one.shard in files))
    return WholePositions(
        config,
        Path("no tokenizer"),
        IDS,
        [source],
        seed=3,
        size=size,
        epoch=epoch,
        positions=positions,
        quarantine=quarantine,
    )


def seen(step: LocalStep) -> Seen:
    """(id of the record, number of the example) for each example of a step."""
    return [
        (int(example.input_ids[0]), example.part)
        for batch in step.micro_batches
        for example in examples_of(batch)
    ]


def all_seen(steps: Sequence[LocalStep]) -> Seen:
    return [one for step in steps for one in seen(step)]
