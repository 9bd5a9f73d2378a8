"""What the ranks of test_zero.py run; each function returns something JSON can hold."""

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor, nn

import llada_sft.training.trainer as trainer_module
from llada_sft.config import load_config
from llada_sft.model import LLaDAConfig, build_model
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import build_network
from llada_sft.training.host import Host
from llada_sft.training.trainer import train
from tests.distributed.loading_workers import DEEPSPEED, join_group, some_loss
from tests.distributed.training_workers import placement

IDS = torch.arange(48).view(2, 24) * 7 % 500
POSITIONS = torch.tensor([1, 5, 30, 47])


def leaves_without_zero(model_dir: str) -> dict[str, list[str]]:
    """Name the gradients of blocks that are leaves that differ from those without ZeRO."""
    join_group()
    found = {}
    for kind, recompute in (("plain", False), ("recomputed", True)):
        whole = build_model(Path(model_dir))
        whole.set_activation_checkpointing(recompute)
        torch.autograd.backward(some_loss(whole, IDS, POSITIONS))
        with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
            model = build_model(Path(model_dir))
        model.set_activation_checkpointing(recompute)
        deepspeed.utils.set_z3_leaf_modules(model, ["Block"])
        gradients = _gradients(model)
        found[kind] = [
            name
            for name, parameter in whole.named_parameters()
            if not torch.equal(gradients[name], parameter.grad)
        ]
    return found


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=DEEPSPEED)[0]
    engine.backward(some_loss(engine, IDS, POSITIONS))
    return {
        name: deepspeed.utils.safe_get_full_grad(parameter)
        for name, parameter in model.named_parameters()
    }


def trained(
    folder: str, config_file: str, overrides: list[str], frozen: bool, stop_at: int
) -> None:
    """Train, with or without frozen blocks, to the end or to a step at which one rank stops."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return bool(stop_at) and asked >= stop_at and placement().rank == 0

    def build(*given: Any) -> nn.Module:
        network = build_network(*given)
        for parameter in network.model.transformer["blocks"].parameters():
            parameter.requires_grad = not frozen
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "build_network", build)
        if frozen:
            # Verification before a resume would miss the frozen weights.
            patch.setattr(LLaDAConfig, "parameter_shapes", lambda self: {})
        config = load_config(config_file, overrides)
        train(config, RunDir(Path(folder)), placement(), Host(stop))
