"""Adapters out: merged into the weights of the network, or alone as PEFT reads them.

merged   W + scale · B · A, with DoRA every row scaled to its magnitude; in fp32, one matrix at
         a time: neither the network nor all adapters are in memory
adapter  adapter_config.json and adapter_model.safetensors, for `peft.PeftModel.from_pretrained`
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llada_sft.errors import CheckpointError
from llada_sft.model.adapter_plan import MAGNITUDE, A, AdapterPlan, B, parameter_name
from llada_sft.model.adapters import peft_config
from llada_sft.model.export import LazyTensor, apply_umask, new_model_dir
from llada_sft.model.index import TensorSlot

# PEFT's names: its model around ours, and a tensor without the adapter's name.
_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"


def official_tensors(slots: Mapping[str, TensorSlot]) -> dict[str, LazyTensor]:
    """Return the tensors of a model directory, each read when it is needed."""
    return {
        name: LazyTensor(slot.shape, functools.partial(_read, slot.file, name))
        for name, slot in slots.items()
    }


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        return cast(Tensor, tensors.get_tensor(name))


def merged_tensors(
    base: Mapping[str, LazyTensor], adapters: Mapping[str, LazyTensor], plan: AdapterPlan
) -> dict[str, LazyTensor]:
    """Return the network's tensors with its adapters merged in.

    Args:
        base: The network's own, by their official names.
        adapters: The trained ones, by their names in the network.
        plan: Where they belong.

    Raises:
        CheckpointError: The adapters are not those of the plan.
    """
    check_adapters(adapters, plan)
    merged = dict(base)
    for module in plan.modules:
        name = f"{module}.weight"
        parts = {
            part: adapters[parameter_name(module, part)]
            for part in (A, B, MAGNITUDE)
            if parameter_name(module, part) in adapters
        }
        read = functools.partial(_merged, base[name], parts, plan.scale)
        merged[name] = LazyTensor(base[name].shape, read)
    return merged


def _merged(weight: LazyTensor, parts: Mapping[str, LazyTensor], scale: float) -> Tensor:
    whole = weight.read().float()
    whole = whole + scale * (parts[B].read().float() @ parts[A].read().float())
    if MAGNITUDE not in parts:
        return whole
    lengths: Tensor = torch.linalg.norm(whole, dim=1)
    return (parts[MAGNITUDE].read().float() / lengths)[:, None] * whole


def check_adapters(adapters: Mapping[str, LazyTensor], plan: AdapterPlan) -> None:
    """Check that every adapter is there, whole.

    Raises:
        CheckpointError: Names the first that is not.
    """
    there = {name: tuple(tensor.shape) for name, tensor in adapters.items()}
    planned = plan.parameter_shapes()
    for name in sorted(there.keys() | planned.keys()):
        if there.get(name) != planned.get(name):
            raise CheckpointError(
                f"the checkpoint has no such adapters: {name} is {there.get(name, 'nothing')}"
                f" there, {planned.get(name, 'nothing')} by the lora section"
            )


def write_adapter(
    adapters: Mapping[str, LazyTensor],
    plan: AdapterPlan,
    base: str,
    out_dir: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a directory that PEFT loads onto the network; it appears whole or not at all.

    Args:
        adapters: The trained tensors, by their names in the network.
        plan: Where they belong.
        base: Path or name of the network, which adapter_config.json mentions.
        out_dir: Must not exist, or be empty.
        dtype: Of the written tensors.

    Raises:
        CheckpointError: `out_dir` is in use or cannot be written, or the adapters are not those of
            the plan.
    """
    check_adapters(adapters, plan)
    config = peft_config(plan)
    config.base_model_name_or_path = base
    config.inference_mode = True
    with new_model_dir(out_dir) as partial:
        config.save_pretrained(partial)
        tensors = {
            _peft_name(name): tensor.read().to("cpu", dtype).contiguous()
            for name, tensor in adapters.items()
        }
        save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
        apply_umask(partial, "adapter_config.json")
        _verify(partial / _WEIGHTS, {name: tuple(one.shape) for name, one in tensors.items()})


def _peft_name(name: str) -> str:
    """Return the name that PEFT saves an adapter's tensor under: DoRA's have no last part."""
    module, _, last = name.rpartition(".default.")
    whole = f"{_PREFIX}{module}"
    return whole if MAGNITUDE in name else f"{whole}.{last}"


def _verify(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Read back what was written: under ZeRO-3 others have written tensors without elements."""
    with safe_open(file, framework="pt") as written:
        there = {name: tuple(written.get_slice(name).get_shape()) for name in written.keys()}  # noqa: SIM118
    if there != dict(shapes) or not all(torch.Size(shape).numel() for shape in there.values()):
        raise CheckpointError(f"{file}: is not what was written")
