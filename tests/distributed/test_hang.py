"""A rank that stands still in the middle of a training: it is named, and the run ends."""

import re
from pathlib import Path

import pytest

from llada_sft.cluster import failures
from llada_sft.cluster.failures import Failure
from llada_sft.run_dir import RunDir
from tests.distributed.test_local_run import ROOT, project, rank_processes, start

__all__ = ["project"]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
# Longer than any step takes on a busy machine.
TIMEOUT_S = 6
# Runs in the ranks, as the hook does where no other process prepares the data.
FAULT = """

import os, re, time

def stand_still():
    {action}

if os.environ.get("RANK") == "1":
    from llada_sft.training.module import DiffusionModule
    whole = DiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == 7:
            stand_still()
        return whole(self, batch, batch_idx)

    DiffusionModule.training_step = training_step
"""


def hang(project: Path, action: str) -> tuple[RunDir, list[Failure]]:
    """Train until rank 1 stands still, and past that; give what is left of it."""
    hook = (ROOT / "utils/process_data.py").read_text() + FAULT.format(action=action)
    (project / "hook.py").write_text(hook)
    launcher = start(
        project,
        "run.name=hang",
        "data.hook=hook.py",
        "data.prefetch_steps=0",
        f"train.hang_timeout_s={TIMEOUT_S}",
        "train.validate_every_steps=1000",
    )
    _, problem = launcher.communicate()
    assert launcher.returncode != 0, problem
    run = RunDir(project / "runs/hang")
    assert rank_processes(run) == {}
    return run, failures.read_all(run)


def test_a_rank_that_sleeps_is_named(project: Path) -> None:
    run, (waiting, named) = hang(project, "time.sleep(1000)")
    place = r"process_data\.py:\d+ stand_still"
    assert re.fullmatch(
        rf"no step for \d+ s in phase step: waiting for rank 1, which is in {place};"
        r" see stacks/attempt_1_rank_\*\.txt",
        waiting.error,
    )
    assert re.fullmatch(
        rf"no step for \d+ s in phase step: it is in {place}; and the other ranks wait for it;"
        r" see stacks/attempt_1_rank_\*\.txt",
        named.error,
    )
    # Each says it itself, whoever was first to find it.
    fields = [(one.cause, one.step, one.consequence, one.witness) for one in (waiting, named)]
    assert fields == [("hang", 7, True, None), ("hang", 7, False, None)]
    assert "in stand_still" in run.rank_stacks(1, 1).read_text()
    assert "/deepspeed/" in run.rank_stacks(1, 0).read_text()


def test_a_rank_that_cannot_speak_is_named(project: Path) -> None:
    """tests/unit/cluster/rank/test_watchdog.py has another: one that is stopped."""
    _, (waiting, named) = hang(project, 're.match(r"(a|a)*b", "a" * 60)')
    words = r"is in __init__\.py:\d+ match, in C code that holds Python's lock"
    assert re.search(f"waiting for rank 1, which {words};", waiting.error)
    assert re.search(f": it {words}; and the other ranks wait for it;", named.error)
    assert [(one.rank, one.cause, one.consequence) for one in (waiting, named)] == [
        (0, "hang", True),
        (1, "hang", False),
    ]
