"""What a rank says before its first step, and trainings that have ended already."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from llada_sft.config import load_config
from llada_sft.config.sections.validation import EarlyStopConfig
from llada_sft.model.adapter_plan import AdapterPlan
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.begin import TrainingJob
from llada_sft.training.checkpoint.resume import Resume
from llada_sft.training.host import Host
from llada_sft.training.trainer import _has_ended
from llada_sft.training.validation.best import BestSoFar, Lowest, ValidationState

ROOT = Path(__file__).parents[3]


def job_of(rank: int, host: Host, *overrides: str, adapters: Any = None) -> TrainingJob:
    nothing = cast(Any, None)
    return TrainingJob(
        config=load_config(ROOT / "config/demo.yaml", overrides),
        run=RunDir(Path("run")),
        placement=Placement(rank, 2, 0, rank, "127.0.0.1", 1),
        host=host,
        device=torch.device("cpu"),
        consensus=nothing,
        network=nothing,
        balance=None,
        adapters=adapters,
        base="b",
        nodes=(),
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_alone_speaks(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    notes: list[Any] = []
    job = job_of(rank, Host(note=notes.append, ended_early=notes.append))
    job.say("a line")
    job.warn("slow")
    job.note_early_stop("no better")
    printed = capsys.readouterr()
    if rank == 0:
        assert (printed.out, printed.err) == ("a line\n", "warning: slow\n")
        assert notes == [{"event": "warning", "detail": "slow"}, "early stop: no better"]
    else:
        assert (printed.out, printed.err, notes) == ("", "", [])


def test_checkpoints_name_the_adapters_and_their_base() -> None:
    class Plan:
        def record(self, base: str, precision: str) -> dict[str, object]:
            return {"base": base, "dtype": precision}

    assert job_of(0, Host()).adapters_record is None
    job = job_of(0, Host(), adapters=cast(AdapterPlan, Plan()))
    assert job.adapters_record == {"base": "b", "dtype": "fp32"}


def test_a_training_whose_steps_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of(0, Host(), "train.max_steps=5")
    best = BestSoFar()
    assert not _has_ended(job, Resume(None, 4, None), best)
    assert capsys.readouterr().out == ""
    assert _has_ended(job, Resume(None, 5, None), best)
    assert capsys.readouterr().out == (
        "train.max_steps: 5 steps are made, got 5: there is nothing to do; raise it to train"
        " further\n"
    )
    assert not _has_ended(job_of(0, Host(), "train.max_steps=null"), Resume(None, 5, None), best)


def test_a_training_that_was_stopped_early(capsys: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    lowest = Lowest("validation_loss", 1.5, 2)
    early_stop = EarlyStopConfig(metric="validation_loss", patience=1)
    best = BestSoFar(None, early_stop, ValidationState(3, lowest=lowest, misses=1))
    reason = "validation_loss was not below 1.5000 (step 2) in 1 validations"
    assert _has_ended(job_of(0, Host(ended_early=notes.append)), Resume(None, 3, None), best)
    assert capsys.readouterr().out == (
        f"train.early_stop: step 3: {reason}: there is nothing to do; raise its patience, or set it"
        " to null, to train further\n"
    )
    assert notes == [f"early stop: {reason}"]
