"""What the ranks of test_zero.py run; each function returns something JSON can hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import llada_sft.training.trainer as trainer_module
from llada_sft.config import load_config
from llada_sft.model import Network, build_model
from llada_sft.model.layers.kept_bytes import Checkpointing
from llada_sft.model.network import Block
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import build_network
from llada_sft.training.checkpoint.resume import Resume, find_resume
from llada_sft.training.host import Host
from llada_sft.training.strategy import Zero3Strategy
from llada_sft.training.trainer import train
from tests.distributed.loading_workers import DEEPSPEED, join_group, some_loss
from tests.distributed.training_workers import placement

IDS = torch.arange(48).view(2, 24) * 7 % 500
POSITIONS = torch.tensor([1, 5, 30, 47])


def leaves_without_zero(model_dir: str) -> dict[str, list[str]]:
    """Name the gradients of blocks that are leaves that differ from those without ZeRO."""
    join_group()
    found = {}
    kinds: tuple[Checkpointing, ...] = ("none", "selective", "full")
    for kind in kinds:
        expected = _gradients_without_zero(model_dir, kind)
        gradients = zero_gradients(_leaves(model_dir, kind))
        found[kind] = [
            name for name in expected if not torch.equal(gradients[name], expected[name])
        ]
    return found


def compiled_leaves(model_dir: str, compiled: bool = True) -> dict[str, dict[str, Any]]:
    """Compare gradients of leaves with those without ZeRO, and look for saved weights.

    Args:
        model_dir: The network.
        compiled: Whether its blocks are compiled.

    Returns:
        For each way of checkpointing the largest relative error of a gradient, and how many tensors
        of gathered weights are still in memory after the forward pass.
    """
    join_group()
    found = {}
    kinds: tuple[Checkpointing, ...] = ("none", "selective", "full")
    for kind in kinds:
        expected = _gradients_without_zero(model_dir, kind)
        model = _leaves(model_dir, kind)
        if compiled:
            model.compile_blocks()
        alive: list[int] = []
        gradients = zero_gradients(model, alive)
        errors = [
            float((gradients[name] - value).norm() / value.norm())
            for name, value in expected.items()
        ]
        found[kind] = {"error": max(errors), "alive": alive}
    return found


def _gradients_without_zero(model_dir: str, kind: Checkpointing) -> dict[str, Tensor]:
    whole = build_model(Path(model_dir))
    whole.set_activation_checkpointing(kind)
    torch.autograd.backward(some_loss(whole, IDS, POSITIONS))
    return {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}


def _leaves(model_dir: str, kind: Checkpointing) -> Network:
    with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
        model = build_model(Path(model_dir))
    model.set_activation_checkpointing(kind)
    deepspeed.utils.set_z3_leaf_modules(model, ["Block"])
    return model


def zero_gradients(
    model: nn.Module,
    alive: list[int] | None = None,
    loss_of: Callable[[Any], Tensor] = lambda engine: some_loss(engine, IDS, POSITIONS),
) -> dict[str, Tensor]:
    """Return all gradients; count weights of blocks that outlive the forward pass in `alive`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=DEEPSPEED)[0]
    gathered: list[StorageWeakRef] = []

    def remember(block: nn.Module, inputs: object) -> None:
        gathered.extend(StorageWeakRef(p.data.untyped_storage()) for p in block.parameters())

    # After DeepSpeed's own hook, which gathers.
    hooks = [
        block.register_forward_pre_hook(remember)
        for block in model.modules()
        if isinstance(block, Block)
    ]
    loss = loss_of(engine)
    assert gathered
    if alive is not None:
        alive.append(sum(not weights.expired() for weights in gathered))
    for hook in hooks:
        hook.remove()
    engine.backward(loss)
    return {
        name: deepspeed.utils.safe_get_full_grad(parameter)
        for name, parameter in model.named_parameters()
    }


def _find_resume_of_any_network(*given: Any, **more: Any) -> Resume:
    return find_resume(*given, **{**more, "network": {}})


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
        if frozen:
            for block in network.blocks():
                block.requires_grad_(False)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "build_network", build)
        if frozen:
            # Verification before a resume would miss the frozen weights.
            patch.setattr(trainer_module, "find_resume", _find_resume_of_any_network)
        config = load_config(config_file, overrides)
        train(config, RunDir(Path(folder)), placement(), Host(stop))


def reductions(folder: str, config_file: str, runs: dict[str, list[str]]) -> dict[str, list[int]]:
    """Train; return how many elements each micro-batch sent to be reduced at stages 1 and 2."""
    sent: list[int] = []

    def average(self: DeepSpeedZeroOptimizer, tensor: Tensor, *more: Any) -> None:
        sent[-1] += tensor.numel()
        _average(self, tensor, *more)

    def accumulate(self: Zero3Strategy, loss: Tensor, last: bool) -> None:
        sent.append(0)
        _accumulate(self, loss, last)

    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepSpeedZeroOptimizer, "average_tensor", average)
        patch.setattr(Zero3Strategy, "accumulate", accumulate)
        for name, overrides in runs.items():
            config = load_config(config_file, overrides)
            train(config, RunDir(Path(folder) / name), placement(), Host(lambda: False))
            seen[name], sent[:] = list(sent), []
    return seen


_average, _accumulate = DeepSpeedZeroOptimizer.average_tensor, Zero3Strategy.accumulate
