"""Checkpoints that cannot be written: real ranks, a real disk that is full."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, with_data, write_shards
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
WORKERS = "tests.distributed.saving_workers"
TIMEOUT_S = 280
# The disk fills up as soon as there is a checkpoint: in the background, none knows at which step.
SYNC = "train.async_checkpoints=false"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def overrides(demo: Path, tmp_path: Path) -> list[str]:
    return [
        *with_data(demo, write_shards(tmp_path / "shards", [24, 24])),
        "train.epochs=1",
        "train.max_steps=6",
        "train.checkpoint_every_steps=2",
        "train.validate_every_steps=100",
        "train.validation_max_rows=2",
    ]


def line_of(partial: Path) -> str:
    return (
        rf"{re.escape(str(partial))}: cannot be written: No space left on device;"
        rf" 0\.\d MB needed, 0\.1 MB free: the checkpoint of step 2 is intact"
    )


def test_a_full_disk_stops_the_run_which_goes_on_later(
    small_disk: Path, tmp_path: Path, overrides: list[str]
) -> None:
    run = small_disk / "run"
    arguments = {"config_file": CONFIG, "overrides": [*overrides, SYNC]}
    ranks = run_on_ranks(
        f"{WORKERS}:on_a_disk_that_fills_up", 2, TIMEOUT_S, folder=str(run), **arguments
    )
    partial = run / "checkpoints/step_4.partial"
    line = rf"SaveError: {line_of(partial)}; free space and start the run again"
    outcomes = [rank["outcome"] for rank in ranks]
    assert any(re.fullmatch(line, outcome) for outcome in outcomes), outcomes
    peer = "PeerFailedError: step 4: another rank could not write; see its line"
    assert all(re.fullmatch(line, outcome) or outcome == peer for outcome in outcomes), outcomes
    assert ranks[0]["there"] == ["latest", "step_2"]
    assert (run / "checkpoints/latest").read_text() == "step_2\n"
    (small_disk / "filler").unlink()
    again = run_on_ranks(f"{WORKERS}:simply", 2, TIMEOUT_S, folder=str(run), **arguments)
    whole = tmp_path / "whole"
    run_on_ranks(f"{WORKERS}:simply", 2, TIMEOUT_S, folder=str(whole), **arguments)
    assert again[0]["outcome"] == "finished"
    assert again[0]["there"] == ["latest", "step_4", "step_6"]
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 6


def test_a_run_told_to_stop_does_so_though_its_disk_is_full(
    small_disk: Path, overrides: list[str]
) -> None:
    run = small_disk / "run"
    ranks = run_on_ranks(
        f"{WORKERS}:on_a_disk_that_fills_up", 2, TIMEOUT_S,
        folder=str(run), config_file=CONFIG, overrides=[*overrides, SYNC], told_to_stop=True,
    )  # fmt: skip
    assert [rank["outcome"] for rank in ranks] == ["stopped", "stopped"]
    assert ranks[0]["there"] == ["latest", "step_2"]
    (warning,) = ranks[0]["warnings"]
    assert "cannot be written: No space left on device" in warning
    assert warning.endswith("the checkpoint of step 2 is intact; stopping continues")
    assert ranks[1]["warnings"] == []


def test_a_full_disk_is_passed_over_but_for_the_last_checkpoint(
    small_disk: Path, overrides: list[str]
) -> None:
    run = small_disk / "run"
    go_on = [*overrides, SYNC, "train.on_failed_save=go_on"]
    ranks = run_on_ranks(
        f"{WORKERS}:on_a_disk_that_fills_up", 2, TIMEOUT_S,
        folder=str(run), config_file=CONFIG, overrides=go_on,
    )  # fmt: skip
    (warning,) = ranks[0]["warnings"]
    partial = run / "checkpoints/step_4.partial"
    assert re.fullmatch(rf"{line_of(partial)}; training continues", warning), warning
    # Nothing comes after it that could still be written.
    last = run / "checkpoints/step_6.partial"
    line = rf"SaveError: {line_of(last)}; free space and start the run again"
    outcomes = [rank["outcome"] for rank in ranks]
    assert any(re.fullmatch(line, outcome) for outcome in outcomes), outcomes
    assert ranks[0]["there"] == ["latest", "step_2"]


def test_no_rank_waits_for_one_that_cannot_write(overrides: list[str], tmp_path: Path) -> None:
    go_on = [*overrides, "train.on_failed_save=go_on"]
    ranks = run_on_ranks(
        f"{WORKERS}:one_rank_cannot_write", 2, TIMEOUT_S,
        folder=str(tmp_path), config_file=CONFIG, overrides=go_on,
    )  # fmt: skip
    whole = None
    for name, seen in ranks[0].items():
        partial = tmp_path / name / "checkpoints/step_4.partial"
        line = f"{partial}: cannot be written: Input/output error"
        warning = f"{line}: the checkpoint of step 2 is intact; training continues"
        assert (name, seen["warnings"]) == (name, [warning])
        assert seen["outcome"] == ranks[1][name]["outcome"] == "finished"
        assert seen["there"] == ["latest", "step_2", "step_6"]
        found = losses(tmp_path / name)
        whole = whole or found
        assert found == whole
        assert len(found) == 6


def test_logs_that_cannot_be_written_do_not_end_a_run(overrides: list[str], tmp_path: Path) -> None:
    more = [*overrides, "log.tensorboard=true"]
    ranks = run_on_ranks(
        f"{WORKERS}:with_loggers_that_fail", 2, TIMEOUT_S,
        folder=str(tmp_path / "run"), config_file=CONFIG, overrides=more,
    )  # fmt: skip
    assert [rank["outcome"] for rank in ranks] == ["finished", "finished"]
    assert list(losses(tmp_path / "run")) == [1, 3, 4, 5, 6]
