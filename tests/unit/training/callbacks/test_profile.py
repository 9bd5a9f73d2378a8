"""The steps that are recorded, and what becomes of the trace."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llada_sft.training.callbacks.profile import Profile

MODULE: Any = SimpleNamespace(device=torch.device("cpu"))


def owned() -> None:
    """The run is ours."""


def run(callback: Profile, steps: range, rank: int = 0) -> None:
    """Make steps, each of which calls an operation of its own size."""
    trainer: Any = SimpleNamespace(global_step=steps.start - 1, is_global_zero=rank == 0)
    for step in steps:
        callback.on_train_batch_start(trainer, MODULE, None, 0)
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(2).sum()
        trainer.global_step = step
        callback.on_train_batch_end(trainer, MODULE, None, None, 0)
    callback.on_train_end(trainer, MODULE)


def steps_in(trace: Path) -> list[str]:
    events = json.loads(trace.read_text())["traceEvents"]
    return sorted({name for event in events if (name := event.get("name", "")).startswith("step ")})


@pytest.mark.parametrize(
    ("steps", "name", "recorded"),
    [
        (range(1, 9), "rank_0_steps_3_to_4.json", ["step 3", "step 4"]),
        # Resumed within, and stopped within.
        (range(4, 9), "rank_0_steps_4_to_4.json", ["step 4"]),
        (range(1, 4), "rank_0_steps_3_to_3.json", ["step 3"]),
    ],
)
def test_the_steps_that_were_asked_for(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    steps: range,
    name: str,
    recorded: list[str],
) -> None:
    run(Profile((3, 4), tmp_path / "profile", owned), steps)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == name
    assert steps_in(trace) == recorded
    assert capsys.readouterr().out == f"profile: {trace}\n"


@pytest.mark.parametrize(
    ("wanted", "steps", "rank"),
    [
        ((3, 4), range(5, 9), 0),
        ((3, 4), range(1, 3), 0),
        ((3, 4), range(1, 9), 1),
        (None, range(1, 9), 0),
    ],
)
def test_other_steps_and_ranks_record_nothing(
    tmp_path: Path, wanted: tuple[int, int] | None, steps: range, rank: int
) -> None:
    run(Profile(wanted, tmp_path / "profile", owned), steps, rank)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way")
    run(Profile((3, 4), tmp_path / "profile", owned), range(1, 9))
    path = tmp_path / "profile/rank_0_steps_3_to_4.json"
    start = f"warning: {path}: the profile is not written: "
    assert capsys.readouterr().err.startswith(start)


def test_nothing_is_written_into_the_run_of_another(tmp_path: Path) -> None:
    def lost() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(Profile((3, 4), tmp_path / "profile", lost), range(1, 9))
    assert list(tmp_path.iterdir()) == []
