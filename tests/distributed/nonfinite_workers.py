"""What the ranks of the non-finite tests run: training with one step that goes wrong on purpose."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import llada_sft.training.trainer as trainer_module
from llada_sft.config import load_config
from llada_sft.errors import LladaSftError
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.module import DiffusionModule
from llada_sft.training.trainer import train
from tests.distributed.training_workers import _told_at, _whole_state, placement

# Optimizer steps that are made before the bad one, the rank that it happens on, and where.
BAD_STEP, BAD_RANK, BAD_MICRO_BATCH = 2, 1, 1


def _spoiled(how: str) -> Callable[[DiffusionModule, Any], torch.Tensor]:
    """Make a forward pass whose loss or gradient is not finite in one micro-batch."""
    whole, seen = DiffusionModule.forward, 0

    def forward(self: DiffusionModule, batch: Any) -> torch.Tensor:
        nonlocal seen
        loss = whole(self, batch)
        if self.global_step != BAD_STEP or not self.trainer.training:
            seen = 0
            return loss
        seen += 1
        if placement().rank != BAD_RANK or seen != BAD_MICRO_BATCH + 1:
            return loss
        if how == "gradient":
            loss.register_hook(lambda gradient: gradient * math.nan)
            return loss
        # With inf added the gradient stays finite.
        return loss * math.nan if how == "nan" else loss + math.inf

    return forward


def _only_counted() -> Callable[[DiffusionModule, Any, int], None]:
    """Make a training step that for the bad step does nothing but count it."""
    whole = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if self.global_step != BAD_STEP:
            return whole(self, batch, batch_idx)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.trainer.strategy, "optimizer_step", lambda *_, **__: None)
            self.optimizers().step()  # type: ignore[union-attr]
        return None

    return training_step


def spoiled_run(
    folder: str, config_file: str, overrides: list[str], how: str, stop_at: int = 0
) -> dict[str, Any]:
    """Train with a bad step; stopped after some steps, and taken up again, unless that is 0.

    Returns:
        `states`: a digest of weights, moments and step counts after each step, the first before
        any; `notes`: the journal's of such steps; `error`: what was raised, if anything; `rows`:
        those of the rank's micro-batches in the bad step.
    """
    config, run = load_config(config_file, overrides), RunDir(Path(folder))
    seen: dict[str, Any] = {"states": [], "notes": [], "error": None, "rows": []}

    class Measure(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._add(trainer)

        def on_train_batch_start(self, trainer: Any, _module: Any, batch: Any, _: int) -> None:
            if trainer.global_step == BAD_STEP:
                seen["rows"] = [[f"{f}:{n}" for f, n in one.rows] for one in batch.micro_batches]

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self._add(trainer)

        def on_exception(self, trainer: Any, *_: Any) -> None:
            self._add(trainer)

        def _add(self, trainer: Any) -> None:
            engine = trainer.strategy.deepspeed_engine
            state = _whole_state if trainer.strategy.zero_stage_3 else _own_state
            whole = json.dumps(state(engine))
            seen["states"].append(hashlib.sha256(whole.encode()).hexdigest())

    def note(entry: Mapping[str, object]) -> None:
        if entry["event"] == "nonfinite":
            seen["notes"].append(dict(entry))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "OwnSignals", lambda claim_signals: Measure())
        if how == "counted":
            patch.setattr(DiffusionModule, "training_step", _only_counted())
        elif how != "none":
            patch.setattr(DiffusionModule, "forward", _spoiled(how))
        try:
            if stop_at:
                train(config, run, placement(), Host(_told_at(stop_at, rank=0), note=note))
                seen["states"].pop()
            train(config, run, placement(), Host(note=note))
        except LladaSftError as error:
            seen["error"] = [type(error).__name__, str(error)]
    return seen


def _own_state(engine: Any) -> list[Any]:
    """Weights, moments and step counts of this rank at stage 1 or 2."""
    zero = engine.optimizer
    states = list(zero.optimizer.state.values())
    moments = [tensor for state in states for tensor in state.values()]
    return [tensor.tolist() for tensor in [*zero.single_partition_of_fp32_groups, *moments]]


def spoiled_runs(config_file: str, runs: list[tuple[str, list[str], str, int]]) -> list[Any]:
    """Make several such runs, one after the other."""
    return [
        spoiled_run(folder, config_file, overrides, how, stop_at)
        for folder, overrides, how, stop_at in runs
    ]
