"""The numbers of one network are the same, on any ranks and in any micro-batches."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch.nn.functional as F

from llada_sft.config.schema import Config
from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.families import llada
from llada_sft.placement import Placement
from llada_sft.training.build_data import read_validation
from llada_sft.training.build_network import token_ids
from llada_sft.training.consensus import Consensus
from llada_sft.training.validation.batches import GridBatch, ValidationBatches
from llada_sft.training.validation.results import Table, by_item, item_sums, set_numbers
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import EOS, MASK, TABLE, VOCAB, logits_at

pytestmark = pytest.mark.usefixtures("own_cache_and_no_tokenizer")
HOOK = """
def process_data(record, tokenizer, max_length):
    ids = record["ids"]
    return {"input_ids": ids, "response_mask": [n >= 2 for n in range(len(ids))]}
"""
VOID = 0
NETWORK = NetworkConfig(
    llada.FAMILY.config_json(vocab_size=VOCAB, eos_token_id=EOS, mask_token_id=MASK)
)


def config_of(folder: Path, micro_batch_size: int, end: object) -> Config:
    (folder / "hook.py").write_text(HOOK)
    (folder / "rows").mkdir(exist_ok=True)
    rows = [[1 + (row + n) % 7 for n in range(4 + row)] for row in range(11)]
    text = "".join(json.dumps({"ids": ids}) + "\n" for ids in rows)
    (folder / "rows/0.jsonl").write_text(text)
    data = {
        "train": str(folder / "rows"),
        "validation": str(folder / "rows"),
        "hook": str(folder / "hook.py"),
        "format": "raw",
        "max_length": 50,
        "end": end,
    }
    train = {"micro_batch_size": micro_batch_size}
    whole = {"run": {"name": "a"}, "model": {"path": "none"}, "data": data, "train": train}
    return Config.model_validate(whole)


def numbers_of(config: Config, world_size: int) -> dict[str, float]:
    """Validate on ranks that have a network which is a table; all have the same numbers."""

    def work(rank: int, consensus: Consensus) -> dict[str, float]:
        place = Placement(rank, world_size, rank, 0, "localhost", 1)
        sets, ids = read_validation(config, NETWORK, place, consensus), token_ids(NETWORK)
        size = config.train.micro_batch_size
        batches = ValidationBatches(sets, config.data, ids, place, size, config.validation.draws)
        own = []
        for batch in batches:
            logits = logits_at(batch.batch, TABLE)
            losses = F.cross_entropy(logits, batch.batch.targets, reduction="none")
            own.append(item_sums(batch, losses, logits.argmax(-1), EOS))
        table = by_item(cast(list[Table], consensus.gather(by_item(own))))
        return set_numbers(table, batches.sets[0])

    first, *others = on_ranks(world_size, work)
    assert all(other == first for other in others)
    assert isinstance(first, dict), first
    return first


@pytest.mark.parametrize("end", ["batch_max", 1, 3])
def test_they_do_not_depend_on_ranks_or_micro_batches(tmp_path: Path, end: object) -> None:
    """11 rows; on 13 ranks there are ranks without a row."""
    config = config_of(tmp_path, 2, end)
    alone = numbers_of(config, 1)
    assert len(alone) == 24
    for world_size in (2, 3, 4, 13):
        assert numbers_of(config, world_size) == alone
    for size in (1, 4):
        other = numbers_of(config_of(tmp_path, size, end), 2)
        assert other == pytest.approx(alone, rel=1e-6)


def test_the_longest_of_a_micro_batch_has_a_tail_of_one(tmp_path: Path) -> None:
    longest = numbers_of(config_of(tmp_path, 4, "batch_max"), 2)
    assert longest == numbers_of(config_of(tmp_path, 4, 1), 2)
    assert longest != numbers_of(config_of(tmp_path, 4, 2), 2)


def test_an_end_that_is_always_masked_counts_once(tmp_path: Path) -> None:
    """Answers of 2 to 12 tokens: those before the EOS at their level, the EOS itself always."""
    config = config_of(tmp_path, 2, "void")
    data = config.data.model_copy(update={"void_token_id": VOID})
    config = config.model_copy(update={"data": data})
    place = Placement(0, 1, 0, 0, "localhost", 1)

    def work(_: int, consensus: Consensus) -> list[GridBatch]:
        sets, ids = read_validation(config, NETWORK, place, consensus), token_ids(NETWORK)
        return list(ValidationBatches(sets, config.data, ids, place, 2, config.validation.draws))

    (batches,) = on_ranks(1, work)
    assert isinstance(batches, list), batches
    lengths = []
    for batch in batches:
        for number in range(len(batch.items)):
            of_item = batch.examples == number
            coefficients = batch.batch.coefficients[of_item]
            targets = batch.batch.targets[of_item]
            assert float(coefficients.sum()) == pytest.approx(1.0)
            assert (targets == EOS).sum() == 1 and VOID not in targets
            lengths.append(round(1 / float(coefficients[targets == EOS])))
    assert sorted(lengths) == sorted([*range(3, 14)] * config.validation.draws)
    assert numbers_of(config, 3) == numbers_of(config, 1)
