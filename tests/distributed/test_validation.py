"""Validation on real ranks: comparable numbers, the best checkpoint, early stops, answers."""

import json
from pathlib import Path

import pytest

from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import best_step, list_checkpoints
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, with_data, write_shards

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
WORKERS = "tests.distributed.training_workers"


@pytest.fixture
def overrides(demo: Path, tmp_path: Path) -> list[str]:
    train = write_shards(tmp_path / "shards", [24, 24])
    return [
        *with_data(demo, train),
        "train.validation_max_rows=5",
        "train.validate_every_steps=2",
        "deepspeed.stage3_param_persistence_threshold=0",
    ]


def validations(run: Path) -> list[dict[str, str]]:
    """The numbers of each validation, every digit as it was written."""
    rows = read_metrics(RunDir(run).metrics)
    return [
        {name: value for name, value in row.items() if value and name not in ("step", "loss")}
        for row in rows
        if not row["loss"]
    ]


def steps(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(RunDir(run).checkpoints)]


@pytest.mark.parametrize(
    ("precision", "sizes", "tolerance"), [("fp32", (1, 2, 4), 1e-6), ("bf16", (1, 2), 1e-3)]
)
def test_the_same_network_has_the_same_numbers_on_other_ranks(
    overrides: list[str], tmp_path: Path, precision: str, sizes: tuple[int, ...], tolerance: float
) -> None:
    """The rate is so low that no weight changes; five rows.

    Answers come from a sampler whose passes depend on the answer: of four ranks, one has no prompt.
    """
    given = [
        *overrides,
        f"data.train={write_shards(tmp_path / 'four', [12] * 4)}",
        f"train.precision={precision}",
        "optim.lr=1e-30",
        "optim.final_lr=0",
        "train.max_steps=2",
        "validation.answers=3",
        "validation.answer_length=12",
        "validation.sampler=threshold",
    ]
    found, answers = [], []
    for world_size in sizes:
        run = tmp_path / f"on_{world_size}"
        run_on_ranks(
            f"{WORKERS}:train_each", world_size, 120,
            config_file=CONFIG, runs=[(str(run), given)],
        )  # fmt: skip
        (numbers,) = validations(run)
        found.append({name: float(value) for name, value in numbers.items()})
        answers.append(RunDir(run).answers.read_text())
    for numbers in found[1:]:
        assert numbers == pytest.approx(found[0], rel=tolerance)
    assert found[0]["validation/rows"] == 5
    assert len(answers[0].splitlines()) == 3
    if precision == "fp32":
        assert answers == [answers[0]] * len(sizes)


def test_an_interrupted_run_has_the_numbers_and_answers_of_a_whole_one(
    overrides: list[str], demo: Path, tmp_path: Path
) -> None:
    """Two sets, under ZeRO-3; one of the stops is at the step of a validation."""
    held_out = demo / "data/heldout"
    given = [
        *(each for each in overrides if not each.startswith("data.validation=")),
        f"data.validation={{dev: {held_out}, hard: {held_out}}}",
        "validation.answers=3",
        "validation.answer_length=4",
        "train.keep_best=validation/dev/loss",
        "train.keep_checkpoints=1",
        "train.max_steps=6",
    ]
    run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 200,
        folder=str(tmp_path), config_file=CONFIG, overrides=given, stops=[3, 4],
    )  # fmt: skip
    whole = tmp_path / "whole"
    expected = validations(whole)
    assert len(expected) == 3
    # The two sets are the same rows.
    for numbers in expected:
        assert numbers["validation/dev/loss"] == numbers["validation/hard/loss"]
    answers = RunDir(whole).answers.read_text()
    lines = [json.loads(line) for line in answers.splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 2, 4, 4, 4, 6, 6, 6]
    assert {line["set"] for line in lines} == {"dev", "hard"}
    assert all(line["prompt"] and line["reference"] for line in lines)
    for stop in (3, 4):
        run = tmp_path / f"stopped_{stop}"
        assert validations(run) == expected, f"stopped at {stop}"
        assert RunDir(run).answers.read_text() == answers
        assert best_step(RunDir(run).checkpoints) == best_step(RunDir(whole).checkpoints)


def test_a_run_that_gets_worse_ends_early_and_keeps_its_best(
    overrides: list[str], tmp_path: Path
) -> None:
    given = [
        *overrides,
        # Adam's steps of this size destroy what was learned.
        "optim.lr=3e-3",
        "optim.final_lr=1",
        "optim.warmup_steps=0",
        "optim.gradient_clip=0",
        "train.max_steps=12",
        "train.checkpoint_every_steps=2",
        "train.keep_checkpoints=1",
        "train.keep_best=validation_loss",
        "train.early_stop={metric: validation_loss, patience: 2}",
    ]
    run = tmp_path / "run"
    for _ in range(2):
        # The second time it has ended already: nothing is trained.
        run_on_ranks(
            f"{WORKERS}:train_each", 2, 120, config_file=CONFIG, runs=[(str(run), given)]
        )  # fmt: skip
        losses = [float(numbers["validation_loss"]) for numbers in validations(run)]
        best = 2 * (losses.index(min(losses)) + 1)
        assert len(losses) == best // 2 + 2 < 6
        assert steps(run) == [best, best + 4]
        assert best_step(RunDir(run).checkpoints) == best
