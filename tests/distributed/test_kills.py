"""SIGKILL at 20 random steps in a row, also in the middle of a checkpoint: no bit is lost.

Each time the run goes on from the newest complete checkpoint, whose weights are those of a run that
was never interrupted, and never from one that was cut short.
"""

import random
from pathlib import Path

import pytest
import torch

from llada_sft.demo.data import write_demo
from llada_sft.model.export import zero3_tensors
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import newest_checkpoint
from tests.distributed.kill_workers import PHASES, Moments, Phase
from tests.distributed.ranks import run_on_ranks, started_ranks
from tests.distributed.test_training import CONFIG, with_data, write_shards
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
WORKERS = "tests.distributed.kill_workers"
NUM_KILLS = 20
NUM_STEPS = 36


def draw_kills(calls: list[dict[Phase, int]]) -> list[Moments]:
    """Draw for each kill a step, a phase, who is killed, and after how many calls.

    Args:
        calls: Of each rank, how many calls each phase of each step has.
    """
    draw = random.Random(0)
    kills = []
    for step in sorted(draw.choices(range(1, NUM_STEPS), k=NUM_KILLS)):
        phase = (step, draw.choices(list(PHASES), weights=(1, 2))[0])
        victims = draw.choice([(0,), (1,), (0, 1)])
        kills.append(
            [
                (phase, draw.randint(1, counted[phase])) if rank in victims else None
                for rank, counted in enumerate(calls)
            ]
        )
    return kills


def assert_same_weights(checkpoint: Path, expected: Path) -> None:
    found, wanted = zero3_tensors(checkpoint), zero3_tensors(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].read(), tensor.read()), f"{checkpoint}: {name}"


def whole_run(run: RunDir, overrides: list[str]) -> list[dict[Phase, int]]:
    """Train without interruption, keeping all checkpoints; return the calls of each rank."""
    counts = run_on_ranks(
        f"{WORKERS}:counted_run", 2, 120,
        folder=str(run.path), config_file=CONFIG,
        overrides=[*overrides, f"train.keep_checkpoints={NUM_STEPS}"],
    )  # fmt: skip
    return [{(step, phase): number for (step, phase), number in rank} for rank in counts]


def run_until_killed(run: RunDir, overrides: list[str], moments: Moments, note: Path) -> str:
    """Start the ranks; as soon as one of them is killed, kill the other. Return rank 0's log."""
    with started_ranks(
        f"{WORKERS}:killed_run", 2,
        folder=str(run.path), config_file=CONFIG, overrides=overrides,
        moments=moments, note=str(note),
    ) as ranks:  # fmt: skip
        ended = ranks.wait(120)
        assert note.exists(), f"no rank was killed: {ended}\n{ranks.logs()}"
        return ranks.whole_logs()[0]


def test_killed_at_20_random_steps_in_a_row_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    write_demo(tmp_path)
    # 21 and 9 rows at 4 per step: 6 steps of an epoch, and rank 1 is short of rows from step 3.
    overrides = [
        *with_data(tmp_path, write_shards(tmp_path / "shards", [21, 9])),
        "train.epochs=6",
        "train.max_steps=null",
        "train.checkpoint_every_steps=2",
        "train.validate_every_steps=5",
        "train.validation_max_rows=7",
    ]
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    num_partial = 0
    for number, moments in enumerate(draw_kills(whole_run(whole, overrides)), start=1):
        newest, note = newest_checkpoint(killed.checkpoints), tmp_path / f"kill_{number}"
        if newest is not None:
            assert_same_weights(newest, whole.checkpoints / newest.name)
        log = run_until_killed(killed, overrides, moments, note)
        assert newest is None or f"resuming from {newest}\n" in log
        partial = [path.name for path in killed.checkpoints.glob("step_*.partial")]
        num_partial += len(partial)
        print(f"kill {number}: {moments} in {note.read_text()}; left {partial}")
    assert num_partial > 0, "no checkpoint was cut short"

    runs = [(str(killed.path), overrides)]
    run_on_ranks(f"{WORKERS}:train_each", 2, 120, config_file=CONFIG, runs=runs)
    assert losses(killed.path) == losses(whole.path)
    assert list(losses(whole.path)) == list(range(1, NUM_STEPS + 1))
    last = f"step_{NUM_STEPS}"
    assert_same_weights(killed.checkpoints / last, whole.checkpoints / last)
