"""The block objective on real ranks with ZeRO-3: any number, stopped, killed and resumed."""

from pathlib import Path

import numpy as np
import pytest

from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.members import write_member
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_families import of_member
from tests.distributed.test_kills import WORKERS as KILL_WORKERS
from tests.distributed.test_kills import assert_same_weights, run_until_killed
from tests.distributed.test_training import CONFIG, WORKERS, distance, states, write_shards
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]
BLOCKS = ["objective.kind=block", "objective.block_length=8"]
# The options that need more than the noise of a step.
EVERYTHING = [
    *BLOCKS,
    "objective.pairs=antithetic",
    "objective.t_density=importance",
    "objective.confidence_weight=0.5",
    "objective.edit={share: 0.3, from: model}",
]
PACKED = [
    "train.micro_batch_size=1",
    "data.batching=packed",
    "data.max_tokens=128",
    "data.pack_buffer=5",
    "data.end=2",
]


@pytest.fixture(params=["dense", "llada2"], scope="module")
def member(
    request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("model") / request.param
    return write_member(request.param, demo / "tokenizer", out)


@pytest.mark.parametrize("more", [[], ["objective.band=[0.3, 0.8]"]], ids=["bound", "band"])
def test_the_number_of_ranks_changes_nothing(
    member: Path, demo: Path, tmp_path: Path, more: list[str]
) -> None:
    """Weights and optimizer after two steps, also where each step is made by other ranks."""
    overrides = [*of_member(member, demo / "data/train"), *BLOCKS, *more]
    overrides += ["train.checkpoint_every_steps=1", "objective.normalization=token"]
    one, three = (
        states(tmp_path / str(world_size), world_size, overrides, last=2, examples=6)
        for world_size in (1, 3)
    )
    assert np.linalg.norm(one["after"] - one["before"]) > 1e-2
    assert distance(three["after"], one["after"]) < 1e-6
    changing = tmp_path / "changing"
    states(changing, 2, overrides, first=0, last=1, examples=6)
    last = states(changing, 3, overrides, first=1, last=2, examples=6)
    assert distance(last["after"], one["after"]) < 1e-6


def test_a_run_stopped_at_any_step_resumes_bit_for_bit(
    member: Path, demo: Path, tmp_path: Path
) -> None:
    overrides = [
        *of_member(member, write_shards(tmp_path / "shards", [28, 9, 5])),
        *EVERYTHING,
        *PACKED,
        f"data.validation={demo / 'data/heldout'}",
        "train.max_steps=6",
        "train.checkpoint_every_steps=4",
        "train.validate_every_steps=3",
        "train.validation_max_rows=7",
        "validation.answers=3",
        "validation.answer_length=5",
    ]
    run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=[2],
    )  # fmt: skip
    whole = losses(tmp_path / "whole")
    assert list(whole) == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "stopped_2") == whole
    rows = read_metrics(RunDir(tmp_path / "whole").metrics)
    assert any(row.get("validation/bound") for row in rows)


def test_killed_in_a_step_it_ends_with_the_same_bits(demo: Path, tmp_path: Path) -> None:
    member = write_member("llada2", demo / "tokenizer", tmp_path / "model")
    overrides = [
        *of_member(member, write_shards(tmp_path / "shards", [21, 9])),
        *BLOCKS,
        *PACKED,
        "train.max_steps=6",
        "train.checkpoint_every_steps=2",
    ]
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    run_on_ranks(
        f"{KILL_WORKERS}:counted_run", 2, 150,
        folder=str(whole.path), config_file=CONFIG, overrides=overrides,
    )  # fmt: skip
    run_until_killed(killed, overrides, [None, ((4, 0), 9000)], tmp_path / "killed.txt")
    run_on_ranks(
        f"{KILL_WORKERS}:counted_run", 2, 150,
        folder=str(killed.path), config_file=CONFIG, overrides=overrides,
    )  # fmt: skip
    ends = [newest_checkpoint(run.checkpoints) for run in (whole, killed)]
    assert ends[0] is not None and ends[1] is not None and ends[0].name == ends[1].name
    assert_same_weights(ends[1], ends[0])
    assert losses(killed.path) == losses(whole.path)
