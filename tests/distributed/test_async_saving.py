"""Checkpoints that are written while the training goes on: real ranks, writes that are held up."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_on_ranks, started_ranks
from tests.distributed.test_saving import SYNC, line_of, small_disk
from tests.distributed.test_training import CONFIG, with_data, write_shards
from tests.distributed.training_workers import losses

__all__ = ["small_disk"]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
WORKERS = "tests.distributed.async_workers"
TIMEOUT_S = 280


@pytest.fixture
def overrides(demo: Path, tmp_path: Path) -> list[str]:
    return [
        *with_data(demo, write_shards(tmp_path / "shards", [24, 24])),
        "train.epochs=1",
        "train.max_steps=6",
        "train.keep_checkpoints=9",
        "train.checkpoint_every_steps=2",
        "train.validate_every_steps=100",
        "train.validation_max_rows=2",
    ]


def train_each(runs: list[dict[str, Any]], world_size: int = 2) -> list[list[dict[str, Any]]]:
    """Return for each run what its ranks say."""
    ranks = run_on_ranks(
        f"{WORKERS}:trained_each", world_size, TIMEOUT_S, config_file=CONFIG, runs=runs
    )
    return [list(of_run) for of_run in zip(*ranks, strict=True)]


def found_full(partial: Path) -> str:
    # What was written of it is free again.
    return line_of(partial).replace(r"0\.1 MB free", r"0\.\d MB free")


def files_of(checkpoint: Path) -> dict[str, bytes]:
    paths = [path for path in checkpoint.rglob("*") if path.is_file()]
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in sorted(paths)}


def test_what_is_written_late_is_what_was_there_at_the_step(
    overrides: list[str], tmp_path: Path
) -> None:
    """File by file as when the training waits; and so every resume is the same, too."""
    for name, more in {"sync": [SYNC], "a_step": []}.items():
        # Not one after the other in a process: DeepSpeed writes numbers that count on in it.
        run = {"folder": str(tmp_path / name), "overrides": [*overrides, *more], "until": name}
        (ranks,) = train_each([run])
        for rank in ranks:
            late = [2, 4] if name == "a_step" else []
            assert (rank["outcome"], rank["late"]) == ("finished", late)
        assert ranks[0]["saved"] == [2, 4, 6]
    assert losses(tmp_path / "a_step") == losses(tmp_path / "sync")
    assert len(losses(tmp_path / "sync")) == 6
    for step in (2, 4, 6):
        written, expected = (
            files_of(tmp_path / run / f"checkpoints/step_{step}") for run in ("a_step", "sync")
        )
        assert len(expected) == 7
        assert written.keys() == expected.keys()
        assert [file for file in written if written[file] != expected[file]] == []
    # On another number of ranks, too.
    for name in ("sync", "a_step"):
        shutil.rmtree(tmp_path / name / "checkpoints/step_6")
        (tmp_path / name / "checkpoints/latest").write_text("step_4\n")
    elastic = [*overrides, "train.accumulate_grad_batches=4", "train.checkpoint_every_steps=1"]
    runs = [{"folder": str(tmp_path / name), "overrides": elastic} for name in ("sync", "a_step")]
    for (rank,) in train_each(runs, world_size=1):
        assert (rank["outcome"], rank["saved"]) == ("finished", [5, 6])
    assert losses(tmp_path / "a_step") == losses(tmp_path / "sync")


def test_a_stop_the_next_save_and_a_mistake_wait_for_what_is_being_written(
    overrides: list[str], tmp_path: Path
) -> None:
    spoiled = write_shards(tmp_path / "spoiled", [24, 24]) / "shard_1.jsonl"
    lines = spoiled.read_text().splitlines()
    lines[14] = "{"
    spoiled.write_text("\n".join(lines) + "\n")
    kinds: dict[str, dict[str, Any]] = {
        "stop": {"overrides": overrides, "stop_at": 2},
        "each": {"overrides": [*overrides, "train.checkpoint_every_steps=1"]},
        "mistake": {"overrides": [*overrides, f"data.train={spoiled.parent}"]},
    }
    runs = [{"folder": str(tmp_path / name), "until": "a_wait", **kinds[name]} for name in kinds]
    seen = dict(zip(kinds, train_each(runs), strict=True))
    stop, each, mistake = (seen[name][0] for name in kinds)
    # Told at the boundary of a save, the ranks agree to stop one or two steps later.
    assert stop["outcome"] == "stopped"
    assert stop["saved"][0] == 2 and len(stop["saved"]) == 2
    assert stop["there"] == ["latest", "step_2", f"step_{stop['saved'][1]}"]
    assert (each["outcome"], each["saved"]) == ("finished", [1, 2, 3, 4, 5, 6])
    outcomes = [rank["outcome"].partition(":")[0] for rank in seen["mistake"]]
    assert outcomes == ["PeerFailedError", "DataError"]
    # The bad row is met after step 4 has begun to be written.
    assert (mistake["saved"], mistake["there"]) == ([2, 4], ["latest", "step_2", "step_4"])


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    small_disk: Path, overrides: list[str]
) -> None:
    folder = small_disk / "run"
    run = {"folder": str(folder), "overrides": overrides, "until": "a_step", "fill_at": 5}
    (ranks,) = train_each([run])
    partial = folder / "checkpoints/step_4.partial"
    line = rf"SaveError: {found_full(partial)}; free space and start the run again"
    peer = "PeerFailedError: step 4: another rank could not write; see its line"
    outcomes = [rank["outcome"] for rank in ranks]
    assert any(re.fullmatch(line, outcome) for outcome in outcomes), outcomes
    assert all(re.fullmatch(line, outcome) or outcome == peer for outcome in outcomes), outcomes
    assert (ranks[0]["saved"], ranks[0]["there"]) == ([2], ["latest", "step_2"])


def test_a_full_disk_is_passed_over_also_when_it_is_found_later(
    small_disk: Path, overrides: list[str]
) -> None:
    folder = small_disk / "run"
    go_on = [*overrides, "train.on_failed_save=go_on"]
    run = {"folder": str(folder), "overrides": go_on, "until": "a_step", "fill_at": 5}
    (ranks,) = train_each([run])
    (warning,) = ranks[0]["warnings"]
    partial = folder / "checkpoints/step_4.partial"
    assert re.fullmatch(rf"{found_full(partial)}; training continues", warning), warning
    # The last one must succeed.
    last = found_full(folder / "checkpoints/step_6.partial")
    outcomes = [rank["outcome"] for rank in ranks]
    assert any(re.match(rf"SaveError: {last}", outcome) for outcome in outcomes), outcomes
    assert ranks[0]["there"] == ["latest", "step_2"]


def test_killed_while_a_checkpoint_is_written_it_resumes_from_the_one_before(
    overrides: list[str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with started_ranks(
        f"{WORKERS}:trained", 2,
        folder=str(killed), config_file=CONFIG, overrides=overrides, until="a_step", kill_at=5,
    ) as ranks:  # fmt: skip
        assert ranks.wait(TIMEOUT_S) == "rank 0 exited with code -9"
    checkpoints = killed / "checkpoints"
    assert (checkpoints / "latest").read_text() == "step_2\n"
    assert list((checkpoints / "step_4.partial/checkpoint").glob("*model_states.pt"))
    assert not (checkpoints / "step_4.partial/checkpoint.json").exists()
    runs = [{"folder": str(run), "overrides": overrides} for run in (whole, killed)]
    for ranks_of_run in train_each(runs):
        assert ranks_of_run[0]["outcome"] == "finished"
    assert losses(killed) == losses(whole)
    assert json.loads((checkpoints / "step_6/checkpoint.json").read_text())["step"] == 6
