"""What a user sees of a run: lines in a log file, a bar on a terminal."""

import io
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from llada_sft.training.callbacks import progress
from llada_sft.training.callbacks.progress import Progress

METRICS = {"loss": 1.23456, "tokens_per_s": 12345.6}


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run(
    clock: Clock,
    steps: range,
    total: int | Callable[[int], int],
    every_n_steps: int = 10,
    rank: int = 0,
    bad_rows: int = 0,
    estimated: bool = False,
) -> Any:
    """Make steps of two seconds each; the module's last numbers stay the same.

    Args:
        clock: The time.
        steps: Their numbers.
        total: Steps of the training, or what is known of them at a step.
        every_n_steps: Steps between two lines.
        rank: Which one this is.
        bad_rows: As the module has logged them.
        estimated: Whether `total` is an estimate.
    """
    callback = Progress(every_n_steps)
    module = SimpleNamespace(last_metrics={**METRICS, "bad_rows": bad_rows})
    trainer: Any = SimpleNamespace(global_step=steps.start - 1, is_global_zero=rank == 0)
    callback.on_train_start(trainer, module)
    for step in steps:
        clock.now += 2
        trainer.global_step = step
        known = total if isinstance(total, int) else total(step)
        batch: Any = SimpleNamespace(pace=SimpleNamespace(total_steps=known, estimated=estimated))
        callback.on_train_batch_end(trainer, module, None, batch, step)
    callback.on_train_end(trainer, module)
    return trainer


def test_a_log_file_gets_a_line_every_n_steps(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, range(1, 26), 5000)
    assert capsys.readouterr().out == (
        "step 10/5000  loss 1.2346  12,346 tokens/s  2:46:20 left\n"
        "step 20/5000  loss 1.2346  12,346 tokens/s  2:46:00 left\n"
    )


def test_a_total_that_is_estimated_is_marked_and_never_passed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, range(1, 41), lambda step: max(15, step), estimated=True)
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["step 10/~15", "step 20/~20", "step 30/~30", "step 40/~40"]


def test_bad_rows_are_seen_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, range(1, 11), 20, bad_rows=1200)
    assert "  12,346 tokens/s  1,200 bad rows  " in capsys.readouterr().out


def test_a_gpu_has_its_numbers(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "mfu", 0.4123)
    monkeypatch.setitem(METRICS, "gpu_gb", 61.26)
    run(clock, range(1, 11), 20)
    assert "  12,346 tokens/s  MFU 41.2%  61.3 GB  " in capsys.readouterr().out


def test_a_resumed_run_counts_time_from_where_it_began(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, range(101, 111), 120)
    assert capsys.readouterr().out.endswith("0:00:20 left\n")


def test_other_ranks_are_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, range(1, 5), 20, every_n_steps=1, rank=1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    # The estimate becomes better: the bar ends full.
    run(clock, range(1, 9), lambda step: max(6, step), every_n_steps=100)
    last = terminal.getvalue().rstrip().splitlines()[-1]
    assert "100%" in last
    assert "8/8" in last
    assert "loss 1.2346  12,346 tokens/s" in last
