"""Each member of the family under ZeRO-3: any number of ranks, packed, resumed, elastic."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llada_sft.model import load_model
from llada_sft.model.configuration import read_config
from llada_sft.model.export import export_checkpoint, zero3_tensors
from llada_sft.model.index import read_index
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import newest_checkpoint
from tests.distributed.members import write_member
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, SMALL, distance, states, write_shards
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]


@pytest.fixture(params=["tied", "dream", "moe", "llada2"], scope="module")
def member(
    request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("model") / request.param
    return write_member(request.param, demo / "tokenizer", out)


def of_member(member: Path, train: Path) -> list[str]:
    in_blocks = read_config(member).architecture.decodes_in_blocks
    return [
        *(["objective.kind=block", "objective.block_length=8"] if in_blocks else []),
        *(each for each in SMALL if not each.startswith("model.size.")),
        f"model.path={member}",
        "model.init=pretrained",
        "model.size=null",
        "deepspeed.stage3_param_persistence_threshold=0",
        f"data.train={train}",
        "data.validation=null",
    ]


def test_the_number_of_ranks_changes_nothing(member: Path, demo: Path, tmp_path: Path) -> None:
    """Weights and optimizer after two steps, also where each step is made by other ranks."""
    overrides = [*of_member(member, demo / "data/train"), "train.checkpoint_every_steps=1"]
    of_ranks = [
        states(tmp_path / str(world_size), world_size, overrides, last=2, examples=6)
        for world_size in (1, 2, 3)
    ]
    one, two, three = (numbers["after"] for numbers in of_ranks)
    assert np.linalg.norm(one - of_ranks[0]["before"]) > 1e-2
    assert distance(two, one) < 1e-6
    assert distance(three, one) < 1e-6
    changing = tmp_path / "changing"
    states(changing, 3, overrides, first=0, last=1, examples=6)
    last = states(changing, 2, overrides, first=1, last=2, examples=6)
    assert distance(last["after"], one) < 1e-6


def test_a_packed_run_goes_on_bit_for_bit(member: Path, tmp_path: Path) -> None:
    """Also with blocks that are computed again; and its export has the official names."""
    overrides = [
        *of_member(member, write_shards(tmp_path / "shards", [28, 9, 5])),
        "model.activation_checkpointing=selective",
        "train.micro_batch_size=1",
        "data.batching=packed",
        "data.max_tokens=64",
        "data.pack_buffer=5",
        "data.end=2",
        "train.max_steps=6",
        "train.checkpoint_every_steps=4",
    ]
    run_on_ranks(
        "tests.distributed.training_workers:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=[2],
    )  # fmt: skip
    whole = losses(tmp_path / "whole")
    assert list(whole) == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "stopped_2") == whole
    assert float(whole[6]) < float(whole[1])
    checkpoint = newest_checkpoint(RunDir(tmp_path / "whole").checkpoints)
    assert checkpoint is not None
    trained, network = zero3_tensors(checkpoint), read_config(member)
    export_checkpoint(trained, network, member, tmp_path / "out", torch.float32)
    assert read_index(tmp_path / "out").keys() == read_index(member).keys()
    ids, models = (
        torch.arange(6, 18)[None],
        [load_model(path) for path in (member, tmp_path / "out")],
    )
    kept = [dict(model.named_buffers()) for model in models]
    assert all(buffer.equal(kept[1][name]) for name, buffer in kept[0].items())
    before, after = (model(ids).logits for model in models)
    assert 1e-3 < (after - before).abs().max() < 10


def test_each_byte_is_read_by_one_rank(member: Path) -> None:
    bytes_read = run_on_ranks(
        "tests.distributed.loading_workers:born_partitioned", 2, 120,
        model_dir=str(member), bf16=False,
    )  # fmt: skip
    slots, buffers = read_index(member), read_config(member).architecture.buffer_shapes()
    # Each rank has all buffers.
    again = sum(slots[name].num_bytes for name in buffers)
    assert sum(bytes_read) == sum(slot.num_bytes for slot in slots.values()) + again
