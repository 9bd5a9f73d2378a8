"""What the ranks of test_zero.py run; each function returns something JSON can hold."""

from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from llada_sft.model import build_model
from tests.distributed.loading_workers import DEEPSPEED, join_group, some_loss

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
