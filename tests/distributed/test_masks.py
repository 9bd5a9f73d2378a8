"""Masks in pairs, levels drawn by their losses, the confidence loss: on real ranks with ZeRO-3."""

import json
from pathlib import Path

import pytest

from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.checkpoint.manifest import read_manifest
from llada_sft.training.log.metrics_csv import read_metrics
from llada_sft.training.masks.level_losses import LevelState
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, WORKERS, with_data, write_shards
from tests.distributed.training_workers import losses

pytestmark = pytest.mark.distributed
OBJECTIVE = [
    "objective.pairs=antithetic",
    "objective.t_density=importance",
    "objective.confidence_weight=0.5",
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "batching",
    [
        ["objective.masking=bernoulli"],
        ["train.micro_batch_size=1", "data.batching=packed", "data.max_tokens=128"],
    ],
    ids=["padded", "packed"],
)
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(
    demo: Path, tmp_path: Path, batching: list[str]
) -> None:
    train = write_shards(tmp_path / "shards", [21, 13])
    overrides = [
        *with_data(demo, train),
        *OBJECTIVE,
        *batching,
        "data.end=2",
        "train.epochs=2",
        "train.max_steps=9",
        "train.checkpoint_every_steps=4",
        "train.validate_every_steps=3",
        "train.validation_max_rows=7",
    ]
    stops = [1, 2, 6]
    results = run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=stops,
    )  # fmt: skip
    assert results[0]["outcomes"] == ["finished", *["stopped", "finished"] * len(stops)]
    whole = losses(tmp_path / "whole")
    assert list(whole) == list(range(1, 10))
    for stop in stops:
        assert losses(tmp_path / f"stopped_{stop}") == whole, f"stopped at {stop}"
    rows = read_metrics(RunDir(tmp_path / "whole").metrics)
    # Packed, 64 tokens of examples of 17 to 23; padded, one example of a micro-batch of two rows.
    most = 2 * 2 * (3 if "data.batching=packed" in batching else 1)
    assert all(0 < float(row["examples"]) <= most for row in rows if row["loss"])
    assert sum(float(row["rows"]) for row in rows if row["loss"]) <= 2 * 34


def test_levels_are_taken_up_on_another_number_of_ranks(demo: Path, tmp_path: Path) -> None:
    train = write_shards(tmp_path / "shards", [24, 24])
    overrides = [*with_data(demo, train), *OBJECTIVE, "data.validation=null"]
    overrides += ["train.epochs=2", "train.micro_batch_size=4"]
    run = tmp_path / "run"
    states = []
    for world_size, steps in ((2, 4), (1, 7)):
        run_on_ranks(
            f"{WORKERS}:train_each", world_size, 150,
            config_file=CONFIG, runs=[(str(run), [*overrides, f"train.max_steps={steps}"])],
        )  # fmt: skip
        newest = newest_checkpoint(run / "checkpoints")
        assert newest is not None
        states.append(LevelState.from_json(read_manifest(newest)["levels"]))
    first, second = states
    # 2 ranks x 2 micro-batches of 2 examples; the fourth step was drawn with the first two.
    assert [sum(sums[:16]) for sums in first.pending] == [8, 8]
    assert sum(first.statistics.counts) == pytest.approx(8 + 8 * 0.99)
    assert [sum(sums[:16]) for sums in second.pending] == [4, 4]
    expected = sum(count * 0.99**age for age, count in enumerate([4, 8, 8, 8, 8]))
    assert sum(second.statistics.counts) == pytest.approx(expected)
    assert json.dumps(first.to_json()) != json.dumps(second.to_json())
