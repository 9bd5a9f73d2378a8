"""What the ranks of test_moe.py run; each function returns something JSON can hold."""

import random
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor, nn

import llada_sft.training.trainer as trainer_module
from llada_sft.config import load_config
from llada_sft.model import build_model
from llada_sft.model.layers.experts import Choice
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import build_network
from llada_sft.training.host import Host
from llada_sft.training.trainer import train
from tests.distributed.loading_workers import DEEPSPEED, join_group, some_loss
from tests.distributed.training_workers import placement


def disjoint_experts(model_dir: str, num_steps: int, leaves: bool) -> dict[str, Any]:
    """Make steps in which no expert has tokens of two ranks, and some experts have none.

    Returns:
        How many steps were made, and for each expert how often this rank chose it.
    """
    join_group()
    place = placement()
    draw = random.Random(place.rank)
    counts: dict[int, int] = {}

    def choose(self: Choice, scores: Tensor) -> Tensor:
        if self.experts is None:
            mine = list(range(place.rank, scores.shape[1], place.world_size))
            picked = [draw.sample(mine[: draw.randint(2, len(mine))], 2) for _ in scores]
            self.experts = torch.tensor(picked)
            for number in self.experts.flatten().tolist():
                counts[number] = counts.get(number, 0) + 1
        return self.experts

    with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
        model = build_model(Path(model_dir))
    model.set_activation_checkpointing("full" if leaves else "none")
    if leaves:
        deepspeed.utils.set_z3_leaf_modules(model, ["Block"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=DEEPSPEED)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Choice, "choose", choose)
        for step in range(num_steps):
            # Ranks have different numbers of tokens.
            ids = torch.arange(4 + draw.randint(0, 8))[None] * (step + 1) % 500
            engine.backward(some_loss(engine, ids, torch.tensor([1, 3])))
            engine.step()
    return {"steps": engine.global_steps, "chosen": sorted(counts)}


def with_a_bias(
    folder: str, config_file: str, overrides: list[str], value: float | None, stop_at: int
) -> list[float]:
    """Train a network whose router has a bias; return the buffer at the end.

    Args:
        folder: The run.
        config_file: Its config.
        overrides: Of the config.
        value: What the bias is set to when the network is built; None leaves it.
        stop_at: The step at which to stop; 0: at the end.
    """
    built: list[nn.Module] = []
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return bool(stop_at) and asked >= stop_at and placement().rank == 0

    def build(*given: Any) -> nn.Module:
        network = build_network(*given)
        built.append(network)
        for buffer in network.buffers():
            if value is not None:
                buffer.fill_(value)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "build_network", build)
        config = load_config(config_file, overrides)
        train(config, RunDir(Path(folder)), placement(), Host(stop))
    return torch.cat([buffer.flatten() for buffer in built[0].buffers()]).tolist()
