"""The validation loss of one network is one number, on any ranks and in any micro-batches."""

import json
from pathlib import Path

import pytest

from llada_sft.config.schema import Config
from llada_sft.diffusion.objective import masked_cross_entropy
from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.families import llada
from llada_sft.placement import Placement
from llada_sft.training.build_data import build_validation
from llada_sft.training.consensus import Consensus
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import EOS, MASK, TABLE, VOCAB, logits_at

pytestmark = pytest.mark.usefixtures("own_cache_and_no_tokenizer")
HOOK = """
def process_data(record, tokenizer, max_length):
    ids = record["ids"]
    return {"input_ids": ids, "response_mask": [n >= 2 for n in range(len(ids))]}
"""
NETWORK = NetworkConfig(
    llada.FAMILY.config_json(vocab_size=VOCAB, eos_token_id=EOS, mask_token_id=MASK)
)


def config_of(folder: Path, micro_batch_size: int, eos_tail: object) -> Config:
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
        "eos_tail": eos_tail,
    }
    train = {"micro_batch_size": micro_batch_size}
    whole = {"run": {"name": "a"}, "model": {"path": "none"}, "data": data, "train": train}
    return Config.model_validate(whole)


def validation_loss(config: Config, world_size: int) -> float:
    def work(rank: int, consensus: Consensus) -> float:
        place = Placement(rank, world_size, rank, 0, "localhost", 1)
        batches = build_validation(config, NETWORK, place, consensus)
        losses = [
            masked_cross_entropy(logits_at(batch, TABLE), batch.targets, batch.coefficients)
            for batch in batches
        ]
        return float(sum(losses))

    ranks = on_ranks(world_size, work)
    return float(sum(ranks)) / world_size


@pytest.mark.parametrize("eos_tail", ["batch_max", 1, 3])
def test_it_does_not_depend_on_ranks_or_micro_batches(tmp_path: Path, eos_tail: object) -> None:
    found = [
        validation_loss(config_of(tmp_path, size, eos_tail), world_size)
        for world_size in (1, 2, 3)
        for size in (1, 2, 4)
    ]
    assert found == pytest.approx([found[0]] * len(found), rel=1e-5)


def test_the_longest_of_a_micro_batch_has_a_tail_of_one(tmp_path: Path) -> None:
    longest = validation_loss(config_of(tmp_path, 4, "batch_max"), 2)
    assert longest == validation_loss(config_of(tmp_path, 4, 1), 2)
    assert longest != validation_loss(config_of(tmp_path, 4, 2), 2)
