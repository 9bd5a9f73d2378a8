"""What the ranks of the training tests run; each function returns something JSON can hold."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

import llada_sft.training.build_data as build_data
import llada_sft.training.trainer as trainer_module
from llada_sft.config import load_config
from llada_sft.config.schema import Config
from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.collate import UnmaskedBatch, pad
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.data.steps.prefetch import step_loader
from llada_sft.errors import LladaSftError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.build_data import settle_format
from llada_sft.training.build_network import (
    build_balance,
    build_network,
    plan_training,
    resolve_network,
    token_ids,
)
from llada_sft.training.callbacks.checkpoint_saver import CheckpointSaver
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.checkpoint.manifest import read_manifest
from llada_sft.training.checkpoint.resume import find_resume
from llada_sft.training.consensus import Consensus, Report
from llada_sft.training.feed import StepFeed
from llada_sft.training.host import Host
from llada_sft.training.log.library_warnings import quiet_libraries
from llada_sft.training.log.metrics_csv import read_metrics
from llada_sft.training.log.step_journal import StepJournal
from llada_sft.training.module import DiffusionModule
from llada_sft.training.noising import NoiseSource
from llada_sft.training.ranks import choose_device, init_ranks
from llada_sft.training.schedule.plan import Basis, Schedule
from llada_sft.training.trainer import build_trainer, train


def placement() -> Placement:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Placement(rank, world_size, rank, 0, address, port)


def _train(config: Config, folder: Path, stop_requested: Callable[[], bool]) -> str:
    return train(config, RunDir(folder), placement(), Host(stop_requested))


def _told_at(step: int, rank: int) -> Callable[[], bool]:
    """Tell one rank to stop after it was asked so often."""
    asked = 0

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        return asked >= step and placement().rank == rank

    return stop_requested


def interrupted_runs(
    folder: str, config_file: str, overrides: list[str], stops: list[int]
) -> dict[str, Any]:
    """Train without interruption, and once for each stop with an interruption there."""
    config = load_config(config_file, overrides)
    whole = Path(folder) / "whole"
    outcomes = [_train(config, whole, lambda: False)]
    for stop in stops:
        run = Path(folder) / f"stopped_{stop}"
        outcomes.append(_train(config, run, _told_at(stop, rank=placement().world_size - 1)))
        outcomes.append(_train(config, run, lambda: False))
    return {"outcomes": outcomes}


def losses(folder: Path) -> dict[int, str]:
    """The loss of each step, every digit as it was written."""
    rows = read_metrics(RunDir(folder).metrics)
    return {int(row["step"]): row["loss"] for row in rows if row["loss"]}


def _example(number: int, length: int, answer: int) -> Example:
    generator = np.random.Generator(np.random.Philox(number))
    mask = np.arange(length) >= length - answer
    ids = generator.integers(6, 20, length)
    return Example(ids, mask, None, False, file="shard.jsonl", line=number, part=0)


# Very different answers: 1 to 40 tokens. The global batch of the second step is one short.
_GLOBAL_STEPS = (
    ((0, 12, 1), (1, 50, 40), (2, 20, 5), (3, 9, 3)),
    ((4, 60, 40), (5, 8, 2), (6, 30, 17)),
    ((7, 11, 1), (8, 45, 33), (9, 16, 8), (10, 10, 2)),
)


def _local_step(step: int, rank: int, world_size: int, accumulate: int) -> LocalStep:
    mine = [_example(*which) for which in _GLOBAL_STEPS[step][rank::world_size]]
    batches = [pad(mine[i : i + 1], pad_token_id=1) for i in range(accumulate)]
    return LocalStep(tuple(batches), epoch=0, positions={}, epoch_steps=1)


def updates(
    config_file: str, overrides: list[str], cases: list[tuple[str, list[str]]]
) -> list[dict[str, list[float]]]:
    """Make all hand-made steps in each folder, with further overrides."""
    return [update(folder, config_file, [*overrides, *more]) for folder, more in cases]


def update(
    folder: str,
    config_file: str,
    overrides: list[str],
    first: int = 0,
    last: int = 3,
    examples: int = 4,
) -> dict[str, list[float]]:
    """Make steps first to last of some examples, from a checkpoint if there is one.

    Each micro-batch has one example.

    Returns:
        Before and after these steps, and whole: the weights, both moments of Adam, and its step
        counts; one number after the other.
    """
    quiet_libraries()
    config = load_config(config_file, overrides)
    place, run = placement(), RunDir(Path(folder))
    device = choose_device("cpu", 0)
    init_ranks(place, device, timedelta(minutes=2))
    consensus = Consensus()
    resume = find_resume(run, place, consensus)
    assert resume.step == first
    network = resolve_network(config.model)
    adapters = plan_training(config, network)
    accumulate = examples // place.world_size
    steps = [
        _local_step(step, place.rank, place.world_size, accumulate) for step in range(first, last)
    ]
    noise = NoiseSource(
        config.objective, 0, token_ids(network).mask_token_id, place.rank, place.world_size
    )
    # The rate of each step is that of 100 steps: `max_steps` counts, not the rows.
    basis = Basis.of(config, [], place.world_size)
    schedule = Schedule(config.optim, replace(basis, max_steps=100, epochs={"": 1000}), first)
    feed = StepFeed(steps, noise, consensus, lambda: False, first, schedule=schedule)
    module = DiffusionModule(
        lambda: build_network(config.model, network, config.run.seed, adapters=adapters),
        config.optim,
        log_every_n_steps=1,
        balance=build_balance(config.model, network),
    )
    seen: dict[str, list[float]] = {}

    class Measure(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen["before"] = _whole_state(trainer.strategy.deepspeed_engine)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            seen["after"] = _whole_state(trainer.strategy.deepspeed_engine)

    journal = StepJournal(Host(), consensus, place.rank)
    saver = CheckpointSaver(run, config.train, consensus, feed, {}, journal)
    trainer = build_trainer(config, place, device, [], [Measure(), saver], resume.universal)
    trainer.fit(module, train_dataloaders=feed, ckpt_path=resume.checkpoint)
    return seen


def _whole_state(engine: Any) -> list[float]:
    """Weights, moments and step counts of all ranks, by DeepSpeed's own functions."""
    zero, parts = engine.optimizer, []
    has_state = len(zero.optimizer.state) > 0
    if has_state and hasattr(zero, "_hp_optimizer_states_linked"):
        # At stages 1 and 2 DeepSpeed looks for them after the step of the first group alone.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    for parameter in filter(lambda each: each.requires_grad, engine.module.parameters()):
        parts.append(safe_get_full_fp32_param(parameter))
        for moment in ("exp_avg", "exp_avg_sq"):
            empty = torch.zeros(getattr(parameter, "ds_shape", parameter.shape))
            parts.append(safe_get_full_optimizer_state(parameter, moment) if has_state else empty)
    counts = [float(state["step"]) for state in zero.optimizer.state.values()]
    parts.append(torch.tensor(counts if has_state else [0.0] * len(zero.optimizer.param_groups)))
    parts.append(torch.tensor([group["weight_decay"] for group in zero.optimizer.param_groups]))
    return torch.cat([part.flatten().float().cpu() for part in parts]).tolist()


def delivered(folder: str, config_file: str, overrides: list[str]) -> list[list[Any]]:
    """Run the feed through all epochs without training; return what this rank was given."""
    config = load_config(config_file, overrides)
    place = placement()
    init_ranks(place, choose_device("cpu", 0), timedelta(minutes=2))
    ids = TokenIds(vocab_size=20, eos_token_id=1, mask_token_id=5)
    consensus = Consensus()
    sources = [
        settle_format(source, None, place, consensus).of_rank(place.rank, place.world_size)
        for source in list_sources(config.data, config.train.epochs)
    ]
    dataset = StepDataset(config.data, Path(config.model.path), ids, sources, 0, StepSize(2, 2))
    given: list[list[Any]] = []

    class Recorder(NoiseSource):
        def micro_batches(self, local: LocalStep, counts: Report, step: int) -> list[Any]:
            rows = [[key.file, key.line] for batch in local.micro_batches for key in batch.keys]
            given.append([local.epoch, counts.examples, rows])
            return super().micro_batches(local, counts, step)

    noise = Recorder(config.objective, 0, ids.mask_token_id, place.rank, place.world_size)
    feed = StepFeed(
        step_loader(dataset, config.data.prefetch_steps), noise, consensus, lambda: False, 0
    )
    try:
        for _ in feed:
            pass
    except LladaSftError as error:
        return [["error", type(error).__name__, str(error)]]
    return given


def train_each(config_file: str, runs: list[tuple[str, list[str]]]) -> list[int]:
    """Train one run after the other, perhaps some again; return how many steps each has then."""
    steps = []
    for folder, overrides in runs:
        _train(load_config(config_file, overrides), Path(folder), lambda: False)
        steps.append(len(losses(Path(folder))))
    return steps


def gradient_dtypes(folder: str, config_file: str, overrides: list[str]) -> dict[str, list[str]]:
    """Train a little, and note the dtypes that the engine computes, sums and reduces in."""
    seen: dict[str, list[str]] = {}

    class Note(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            engine = trainer.strategy.deepspeed_engine
            seen["weights"] = sorted({str(p.dtype) for p in pl_module.parameters()})
            seen["summed"] = [str(engine.optimizer.gradient_accumulation_dtype)]
            seen["reduced"] = [str(engine.optimizer.communication_data_type)]

    config = load_config(config_file, overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "OwnSignals", lambda claim_signals: Note())
        _train(config, Path(folder), lambda: False)
    return seen


def optimizer_settings(folder: str, config_file: str, runs: list[list[str]]) -> list[Any]:
    """Train one run several times with other values; return what its steps were made with."""
    seen: list[Any] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            groups = trainer.strategy.deepspeed_engine.optimizer.optimizer.param_groups
            names = ("betas", "eps", "weight_decay", "lr")
            settings = [{name: group[name] for name in names} for group in groups]
            seen.append(json.loads(json.dumps(settings)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "OwnSignals", lambda claim_signals: Note())
        for overrides in runs:
            _train(load_config(config_file, overrides), Path(folder), lambda: False)
    return seen


def trained_rows(
    folder: str, config_file: str, overrides: list[str], stop_at: int
) -> list[list[Any]]:
    """Train, stopped after some steps unless that is 0; return (epoch, file, line) of each example.

    What was fed but not trained when the run stopped is not among them.
    """
    return _trained(
        folder,
        config_file,
        overrides,
        stop_at,
        lambda batch: [[key.epoch, key.file, key.line] for key in batch.keys],
    )


def trained_pieces(
    folder: str, config_file: str, overrides: list[str], stop_at: int
) -> list[list[Any]]:
    """Do the same, and return (file, line, part, learned tokens) of each example."""

    def pieces(batch: UnmaskedBatch) -> list[Any]:
        learned = [int(batch.response_mask.ravel()[span].sum()) for span in batch.spans]
        return [
            [key.file, key.line, key.part, count]
            for key, count in zip(batch.keys, learned, strict=True)
        ]

    return _trained(folder, config_file, overrides, stop_at, pieces)


def _trained(
    folder: str,
    config_file: str,
    overrides: list[str],
    stop_at: int,
    describe: Callable[[UnmaskedBatch], list[Any]],
) -> list[list[Any]]:
    config, run = load_config(config_file, overrides), RunDir(Path(folder))
    fed: dict[int, list[Any]] = {}

    class Recorder(NoiseSource):
        def micro_batches(self, local: LocalStep, counts: Report, step: int) -> list[Any]:
            fed[step + 1] = [row for batch in local.micro_batches for row in describe(batch)]
            return super().micro_batches(local, counts, step)

    def stop() -> bool:
        # Not counted by how often it is asked: while a checkpoint is converted, too.
        return bool(stop_at) and placement().rank == 0 and len(fed) >= stop_at - 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_data, "NoiseSource", Recorder)
        _train(config, Path(folder), stop)
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    last = read_manifest(newest)["step"]
    return [row for step, rows in fed.items() if step <= last for row in rows]
