"""A loss that is NaN or infinite: no rank makes the step, and its rows are named."""

from pathlib import Path
from typing import Any

import pytest

from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.nonfinite_workers import BAD_MICRO_BATCH, BAD_RANK, BAD_STEP
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, with_data, write_shards
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
WORKERS = "tests.distributed.nonfinite_workers"
KINDS = ("nan", "inf", "gradient")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    train = write_shards(folder / "shards", [24, 24])
    return [
        *with_data(folder, train),
        "data.validation=null",
        "train.max_steps=5",
        "train.checkpoint_every_steps=100",
        "train.on_nonfinite=skip",
    ]


def runs(folder: Path, overrides: list[str], **cases: tuple[str, int]) -> list[dict[str, Any]]:
    """Make a run of each name, (how, stopped at); give what each rank saw, by the name."""
    ranks = run_on_ranks(
        f"{WORKERS}:spoiled_runs", 2, 250, config_file=CONFIG,
        runs=[(str(folder / name), overrides, *case) for name, case in cases.items()],
    )  # fmt: skip
    return [dict(zip(cases, rank, strict=True)) for rank in ranks]


@pytest.mark.parametrize("setting", ["offload_optimizer=cpu", "stage=1", "stage=2", "stage=3"])
def test_a_skipped_step_leaves_no_trace_but_the_counters(
    overrides: list[str], tmp_path: Path, setting: str
) -> None:
    more = [*overrides, f"deepspeed.{setting}"]
    cases = {how: (how, 0) for how in ("none", "counted", *KINDS)}
    ranks = runs(tmp_path, more, **cases)
    reference = ranks[0]["counted"]["states"]
    assert len(reference) == 6
    # The step before and the steps after it did change something.
    assert len(set(reference)) == 5
    assert reference[: BAD_STEP + 1] == ranks[0]["none"]["states"][: BAD_STEP + 1]
    assert reference[BAD_STEP + 1 :] != ranks[0]["none"]["states"][BAD_STEP + 1 :]
    for how in KINDS:
        for rank in ranks:
            assert rank[how]["error"] is None
            assert rank[how]["states"] == rank["counted"]["states"], how
        rows = [row for row in read_metrics(RunDir(tmp_path / how).metrics) if row["loss"]]
        assert [row["skipped_steps"] for row in rows] == ["0", "0", "1", "0", "0"]
        others = read_metrics(RunDir(tmp_path / "none").metrics)
        assert [row["lr"] for row in rows] == [row["lr"] for row in others if row["loss"]]


def test_the_rows_are_named_in_the_journal(overrides: list[str], tmp_path: Path) -> None:
    first, second = runs(tmp_path, overrides, **{how: (how, 0) for how in KINDS})
    assert all(rank["notes"] == [] for rank in second.values())
    bad = second["nan"]["rows"][BAD_MICRO_BATCH]
    assert BAD_RANK == 1
    assert len(bad) == 2
    for how in ("nan", "inf"):
        assert first[how]["notes"] == [
            {"event": "nonfinite", "step": BAD_STEP + 1, "detail": "the loss", "rows": bad}
        ]
    # Nobody knows which rows it was: all of the step.
    every = [row for rank in (first, second) for rows in rank["gradient"]["rows"] for row in rows]
    assert len(every) == 8
    assert first["gradient"]["notes"] == [
        {"event": "nonfinite", "step": BAD_STEP + 1, "detail": "the gradient", "rows": every}
    ]


def test_a_run_is_stopped_before_the_step(overrides: list[str], tmp_path: Path) -> None:
    saving = [*overrides, "train.checkpoint_every_steps=1"]
    more = [*saving, "train.on_nonfinite=stop"]
    limited = [*saving, "train.max_skipped_steps=1"]
    cases = {"whole": (more, "none"), "nan": (more, "nan"), "limited": (limited, "nan")}
    found = run_on_ranks(
        f"{WORKERS}:spoiled_runs", 2, 250, config_file=CONFIG,
        runs=[(str(tmp_path / name), *case, 0) for name, case in cases.items()],
    )  # fmt: skip
    ranks = [dict(zip(cases, rank, strict=True)) for rank in found]
    for rank in ranks:
        bad = ", ".join(ranks[BAD_RANK]["nan"]["rows"][BAD_MICRO_BATCH])
        assert rank["nan"]["error"] == [
            "NonFiniteError",
            f"step {BAD_STEP + 1}: the loss is NaN or infinite: rows {bad}; look at them, "
            "lower optim.lr, or skip such steps with train.on_nonfinite=skip",
        ]
        kind, message = rank["limited"]["error"]
        assert kind == "NonFiniteError"
        assert "; 1 step was skipped (train.max_skipped_steps: 1); look at" in message
        assert rank["limited"]["states"] == rank["nan"]["states"]
        before = rank["whole"]["states"][: BAD_STEP + 1]
        assert rank["nan"]["states"] == [*before, before[-1]]
    newest = newest_checkpoint(RunDir(tmp_path / "nan").checkpoints)
    assert newest is not None
    assert newest.name == f"step_{BAD_STEP}"


def test_a_run_goes_on_exactly_after_a_skipped_step(overrides: list[str], tmp_path: Path) -> None:
    # Stopped right after the skipped step, and one later.
    stops = (BAD_STEP + 1, BAD_STEP + 2)
    cases = {f"stopped_{stop}": ("nan", stop) for stop in stops}
    ranks = runs(tmp_path, overrides, whole=("nan", 0), **cases)
    whole = losses(tmp_path / "whole")
    assert [loss == "nan" for loss in whole.values()] == [False, False, True, False, False]
    for stop in stops:
        assert losses(tmp_path / f"stopped_{stop}") == whole
        for rank in ranks:
            assert rank[f"stopped_{stop}"]["states"] == rank["whole"]["states"]
