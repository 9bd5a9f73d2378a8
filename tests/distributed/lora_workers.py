"""What the ranks of test_lora.py run; each function returns something JSON can hold."""

from pathlib import Path
from typing import Any

import deepspeed
import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import llada_sft.training.trainer as trainer_module
from llada_sft.config import load_config
from llada_sft.config.sections.model import LoraConfig
from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model import Network, build_model
from llada_sft.model.adapter_plan import plan_adapters
from llada_sft.model.adapters import add_adapters
from llada_sft.model.layers.kept_bytes import Checkpointing
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import build_network
from llada_sft.training.host import Host
from llada_sft.training.trainer import train
from tests.distributed.loading_workers import DEEPSPEED, join_group, some_loss
from tests.distributed.training_workers import placement
from tests.distributed.zero_workers import IDS, POSITIONS


def state_bytes(config_file: str, runs: list[tuple[str, list[str]]]) -> list[dict[str, int]]:
    """Train each run; return the bytes of this rank's weights, gradients and optimizer states."""
    seen: list[dict[str, int]] = []

    class Count(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(_bytes(trainer.strategy.deepspeed_engine.optimizer, pl_module))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "OwnSignals", lambda claim_signals: Count())
        for folder, overrides in runs:
            config = load_config(config_file, overrides)
            train(config, RunDir(Path(folder)), placement(), Host(lambda: False))
    return seen


def _bytes(zero: Any, module: nn.Module) -> dict[str, int]:
    kept: dict[bool, int] = {False: 0, True: 0}
    for parameter in module.parameters():
        kept[parameter.requires_grad] += getattr(parameter, "ds_tensor", parameter).nbytes
    # DeepSpeed's names of the masters, and of the gradients that it sums in fp32.
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        masters = zero.fp32_partitioned_groups_flat
        gradients = [zero.grad_partitions_flat_buffer]
    else:
        masters = zero.single_partition_of_fp32_groups
        gradients = []
    states = zero.optimizer.state.values()
    moments = [state[key] for state in states for key in ("exp_avg", "exp_avg_sq")]
    return {
        "frozen": kept[False],
        "adapters": kept[True],
        "gradients": sum(tensor.nbytes for tensor in gradients),
        "optimizer": sum(tensor.nbytes for tensor in [*masters, *moments]),
        "leaves": sum(bool(getattr(one, "_z3_leaf", False)) for one in module.modules()),
    }


def dead_adapters(folder: str, config_file: str, overrides: list[str]) -> str:
    """Train with a module whose adapter gets no gradient; return the error."""

    def build(*given: Any, **more: Any) -> nn.Module:
        network = build_network(*given, **more)
        layer: Any = network.get_submodule("model.transformer.blocks.1.up_proj")
        layer.scaling["default"] = 0.0
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "build_network", build)
        try:
            config = load_config(config_file, overrides)
            train(config, RunDir(Path(folder)), placement(), Host(lambda: False))
        except ConfigError as error:
            return str(error)
    return ""


def refused(folder: str, config_file: str, overrides: list[str]) -> str:
    """Resume a run; return why it is refused."""
    try:
        config = load_config(config_file, overrides)
        train(config, RunDir(Path(folder)), placement(), Host(lambda: False))
    except CheckpointError as error:
        return str(error)
    return ""


def compiled_leaves(model_dir: str) -> dict[str, dict[str, float]]:
    """Compare gradients of compiled leaves with adapters with those without ZeRO.

    Returns:
        For each way of checkpointing the largest relative error of a gradient, and how many tensors
        of gathered weights are still in memory after the forward pass.
    """
    join_group()
    found = {}
    kinds: tuple[Checkpointing, ...] = ("none", "full")
    for kind in kinds:
        whole = _adapted(model_dir, kind)
        torch.autograd.backward(some_loss(whole, IDS, POSITIONS))
        with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
            model = _adapted(model_dir, kind)
        deepspeed.utils.set_z3_leaf_modules(model, ["Block"])
        model.compile_blocks()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(trained.values(), lr=0.0)
        engine: Any = deepspeed.initialize(
            model=model,
            model_parameters=list(trained.values()),
            optimizer=optimizer,
            config=DEEPSPEED,
        )[0]
        gathered: list[StorageWeakRef] = []

        def remember(
            block: nn.Module, inputs: object, into: list[StorageWeakRef] = gathered
        ) -> None:
            into.extend(StorageWeakRef(p.data.untyped_storage()) for p in block.parameters())

        # After DeepSpeed's own hook, which gathers.
        hooks = [block.register_forward_pre_hook(remember) for block in model.blocks()]
        loss = some_loss(engine, IDS, POSITIONS)
        alive = sum(not weights.expired() for weights in gathered)
        for hook in hooks:
            hook.remove()
        engine.backward(loss)
        # B is zero: A has no gradient.
        errors = [
            float((deepspeed.utils.safe_get_full_grad(p) - expected).norm() / expected.norm())
            for name, p in trained.items()
            if ".lora_B." in name and (expected := whole.get_parameter(name).grad) is not None
        ]
        assert len(errors) == len(trained) / 2
        found[kind] = {"error": max(errors), "gathered": len(gathered), "alive": alive}
    return found


def _adapted(model_dir: str, kind: Checkpointing) -> Network:
    network = build_model(Path(model_dir))
    add_adapters(network, plan_adapters(network.architecture, LoraConfig(rank=4)), 0)
    network.set_activation_checkpointing(kind)
    return network
