"""What the ranks of test_plan.py run: a training whose tensors are counted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.config import load_config
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.module import DiffusionModule
from llada_sft.training.noising import StepBatch
from llada_sft.training.trainer import train
from tests.distributed.training_workers import placement

STEP = "one optimizer step"


def counted_training(folder: str, config_file: str, overrides: list[str]) -> dict[str, Any]:
    """Train, and count the bytes of all tensors in the last step.

    Returns:
        Bytes at the begin of the step and the most in it, and the most tokens and masked positions
        of its micro-batches.
    """
    batches: list[StepBatch] = []
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: StepBatch, index: int) -> None:
        batches.append(batch)
        with torch.profiler.record_function(STEP):
            original(self, batch, index)

    trace = Path(folder) / f"trace_{placement().rank}.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", training_step)
        config = load_config(config_file, overrides)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            train(config, RunDir(Path(folder) / "run"), placement(), Host())
    profile.export_chrome_trace(str(trace))
    micro_batches = batches[-1].micro_batches
    start, peak = _bytes_of_last_step(json.loads(trace.read_text())["traceEvents"])
    return {
        "start": start,
        "peak": peak,
        "tokens": max(batch.noisy_ids.numel() for batch in micro_batches),
        "masked": max(len(batch.positions) for batch in micro_batches),
    }


def _bytes_of_last_step(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the bytes at its begin, and the most in it.

    By address: the profiler does not see each release.
    """
    steps = [e["ts"] for e in events if e.get("name") == STEP and e.get("ph") == "X"]
    begin, sums = max(steps), list(_sums(events))
    before = [number for time, number in sums if time < begin]
    return before[-1], max(number for time, number in sums if time >= begin)


def _sums(events: list[dict[str, Any]]) -> Iterator[tuple[float, int]]:
    """Give the bytes of all tensors after each allocation and each release."""
    changes = [event for event in events if event.get("name") == "[memory]"]
    alive: dict[int, int] = {}
    total = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        place, size = event["args"]["Addr"], event["args"]["Bytes"]
        total += max(size, 0) - alive.pop(place, 0)
        if size > 0:
            alive[place] = size
        yield event["ts"], total
