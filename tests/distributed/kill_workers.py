"""What the ranks of test_kills.py run: a training that ends by SIGKILL at a moment that was drawn.

A moment is a step, one of its two phases, and how many function calls into that phase. It lies
anywhere in Python's work, the writing of a checkpoint included, and comes again when asked for.
"""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import pytest
from tqdm import tqdm

import llada_sft.training.trainer as trainer_module
from tests.distributed.training_workers import placement, train_each

# In the order of a step: until it is made; and until the next one begins, in which it is logged,
# saved and validated, and the step after the next is fetched.
PHASES = {0: "training", 1: "saving"}
Phase = tuple[int, int]
# For each rank the phase of a step, and after how many calls into it the rank is killed.
Moments = list[tuple[Phase, int] | None]


class _Phases(pl.Callback):
    """Calls `begin` where a phase of a step begins; it is the first of the trainer's callbacks."""

    def __init__(self, begin: Callable[[Phase], None]) -> None:
        self._begin = begin

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._begin((trainer.global_step + 1, 0))

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._begin((trainer.global_step, 1))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        sys.setprofile(None)


def _train(folder: str, config_file: str, overrides: list[str], phases: _Phases) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # It stands first among the callbacks; without a job there are no signals to claim.
        patch.setattr(trainer_module, "OwnSignals", lambda claim_signals: phases)
        train_each(config_file, [(folder, overrides)])


def counted_run(folder: str, config_file: str, overrides: list[str]) -> list[tuple[Phase, int]]:
    """Train without interruption; return how many calls each phase of each step has."""
    calls: Counter[Phase] = Counter()

    def begin(phase: Phase) -> None:
        def count(frame: FrameType, event: str, argument: object) -> None:
            calls[phase] += 1

        sys.setprofile(count)

    _train(folder, config_file, overrides, _Phases(begin))
    return list(calls.items())


def killed_run(
    folder: str, config_file: str, overrides: list[str], moments: Moments, note: str
) -> None:
    """Train until this rank's moment comes; a rank that has none trains on.

    Args:
        folder, config_file, overrides: The run.
        moments: Who is killed when.
        note: A killed rank writes to this file where it was.
    """
    # Of its own kind, tqdm's lock would be a semaphore that a killed process leaves behind.
    tqdm.set_lock(threading.RLock())
    mine = moments[placement().rank]
    left = 0 if mine is None else mine[1]

    def kill(frame: FrameType | None) -> None:
        Path(note).write_text(_where(frame))
        os.kill(os.getpid(), signal.SIGKILL)

    def count_down(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            kill(frame)

    def begin(phase: Phase) -> None:
        if mine is not None and phase == mine[0]:
            sys.setprofile(count_down)
        elif mine is not None and phase > mine[0]:
            # The phase had fewer calls this time, or a checkpoint of its step was there.
            kill(None)

    _train(folder, config_file, overrides, _Phases(begin))


def _where(frame: FrameType | None) -> str:
    """Name the innermost function, and the innermost one of ours."""
    functions = []
    while frame is not None:
        functions.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")
        if "llada_sft" in frame.f_code.co_filename:
            return f"{functions[-1]} > {functions[0]}"
        frame = frame.f_back
    return "between two phases"
