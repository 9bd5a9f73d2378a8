"""What the ranks of test_kernels.py run; each function returns something JSON can hold."""

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor

from llada_sft.model import build_model
from llada_sft.model.kernels.choice import Kernels
from llada_sft.model.kernels.use import import_kernels, use_kernels
from llada_sft.model.layers.kept_bytes import Checkpointing
from tests.distributed.loading_workers import DEEPSPEED, join_group
from tests.distributed.zero_workers import IDS, POSITIONS, zero_gradients
from tests.triton_interpreter import interpret_triton

LIGER = Kernels(norm="liger", swiglu="liger", rope="liger", loss="liger")


def liger_under_zero(model_dir: str, leaves: bool) -> dict[str, dict[str, Any]]:
    """Compare gradients with Liger's kernels under ZeRO-3 with those without both.

    Args:
        model_dir: The network.
        leaves: Whether blocks are leaves of ZeRO-3; otherwise each of their modules has hooks.

    Returns:
        For each way of checkpointing the largest relative error of a gradient, and how many tensors
        of gathered weights are still in memory after the forward pass.
    """
    join_group()
    found = {}
    kinds: tuple[Checkpointing, ...] = ("none", "selective", "full")
    with pytest.MonkeyPatch.context() as patch:
        interpret_triton(patch)
        import_kernels(LIGER)
        for kind in kinds:
            expected = _without_both(model_dir, kind)
            with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
                model = build_model(Path(model_dir))
            model.set_activation_checkpointing(kind)
            use_kernels(model, LIGER)
            if leaves:
                deepspeed.utils.set_z3_leaf_modules(model, ["Block"])
            alive: list[int] = []
            gradients = zero_gradients(model, alive, _loss)
            errors = [
                float((gradients[name] - value).norm() / value.norm())
                for name, value in expected.items()
            ]
            found[kind] = {"error": max(errors), "alive": alive}
    return found


def _without_both(model_dir: str, kind: Checkpointing) -> dict[str, Tensor]:
    whole = build_model(Path(model_dir))
    whole.set_activation_checkpointing(kind)
    torch.autograd.backward(_loss(whole))
    return {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}


def _loss(model: Any) -> Tensor:
    """Return the loss of some positions, each with its weight 1/t."""
    loss: Tensor = model(
        IDS,
        positions=POSITIONS,
        targets=IDS.flatten()[POSITIONS],
        coefficients=1 / torch.tensor([0.1, 0.4, 0.7, 1.0]),
    ).loss
    return loss
