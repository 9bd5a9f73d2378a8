"""The phases of a start add up, and are shown once, by rank 0, if the config asks for it."""

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from llada_sft.training.callbacks.start_times import StartTimes, process_started

RANK_0: Any = SimpleNamespace(is_global_zero=True)
RANK_1: Any = SimpleNamespace(is_global_zero=False)
BATCH: Any = SimpleNamespace(pace=SimpleNamespace(total_steps=40))


def started(is_shown: bool, trainer: Any) -> list[str]:
    written: list[str] = []
    times = StartTimes(is_shown, write=written.append)
    times.mark("imports")
    times.setup(trainer, None, "fit")
    times.on_train_start(trainer, None)
    for _ in range(3):
        times.on_train_batch_end(trainer, None, None, BATCH, 0)
    return written


def test_the_job_learns_of_the_first_step_once() -> None:
    phases: list[tuple[str, int | None]] = []
    times = StartTimes(False, lambda phase, total: phases.append((phase, total)))
    times.on_train_start(RANK_1, None)
    for _ in range(3):
        times.on_train_batch_end(RANK_1, None, None, BATCH, 0)
    assert phases == [("first step", None), ("training", 40)]


def test_the_table_is_shown_once() -> None:
    (table,) = started(True, RANK_0)
    rows = [line.rsplit(maxsplit=2) for line in table.splitlines()[1:]]
    assert rows[0][0].strip() == "imports"
    for column in (1, 2):
        numbers = [float(row[column]) for row in rows]
        assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.006 * len(numbers))


@pytest.mark.parametrize(("is_shown", "trainer"), [(False, RANK_0), (True, RANK_1)])
def test_nobody_else_shows_it(is_shown: bool, trainer: Any) -> None:
    assert started(is_shown, trainer) == []


@pytest.mark.slow
def test_a_process_knows_when_it_was_started() -> None:
    code = "from llada_sft.training.callbacks.start_times import process_started as p; print(p())"
    before = time.time()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Clock ticks are hundredths of a second.
    assert before - 0.02 <= float(shown.stdout) <= time.time()
    assert process_started() < before
