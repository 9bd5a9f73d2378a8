"""LoRA in a network: PEFT's own layers around its matrices, filled by our own initializer.

PEFT puts a layer of its own in the place of each adapted matrix, which becomes its `base_layer`.
Under `deepspeed.zero.Init` its parameters are born partitioned, and nothing that PEFT does to their
values has an effect there: torch.nn.init does nothing, and B would keep what memory held. So A, B
and DoRA's magnitudes are filled here, each rank its slices, by values that the seed alone decides:

    A  uniform within ± 1 / √inputs, which is PEFT's own default
    B  zero: the network computes what it did without adapters, bit for bit
    m  DoRA's magnitudes, the lengths of the rows of W, computed by PEFT's own function

Adapters have the dtype of the network. Their masters in the optimizer are fp32 in any case.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from llada_sft.config.sections.model import LoraConfig
from llada_sft.errors import ConfigError
from llada_sft.keys import hashed
from llada_sft.model.adapter_plan import (
    ADAPTER,
    MAGNITUDE,
    A,
    AdapterPlan,
    B,
    missing_packages,
    parameter_name,
)
from llada_sft.model.initialization import fill_drawn
from llada_sft.model.network import Network
from llada_sft.model.partition import full_shape, is_partitioned, owned_slice


def import_packages(config: LoraConfig) -> None:
    """Import PEFT, and bitsandbytes if it is used: not inside `zero.Init`, which changes torch.

    Raises:
        ConfigError: One of them is not installed.
    """
    if problems := missing_packages(config):
        raise ConfigError("\n".join(problems))
    import_module("peft")
    if config.base == "nf4":
        import_module("bitsandbytes")


def peft_config(plan: AdapterPlan) -> Any:
    """Return PEFT's own description of the adapters."""
    from peft import LoraConfig

    return LoraConfig(
        r=plan.config.rank,
        lora_alpha=plan.config.alpha,
        # A pattern: of a list, each word would match the head as well if that has the same name.
        target_modules=plan.pattern,
        lora_dropout=0.0,
        bias="none",
        use_rslora=plan.config.rslora,
        use_dora=plan.config.dora,
        inference_mode=False,
    )


def add_adapters(network: Network, plan: AdapterPlan, seed: int) -> None:
    """Freeze a network, whole or partitioned, and give it adapters that change nothing yet.

    Args:
        network: Filled with its weights.
        plan: Where adapters belong.
        seed: Of their random values.
    """
    from peft import inject_adapter_in_model

    if plan.config.base == "nf4":
        _quantize(network, plan)
    config = peft_config(plan)
    config.init_lora_weights = False
    with _magnitudes_without_values():
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    network.adapted = True
    parameters = dict(network.named_parameters())
    _check(parameters, plan)
    _fill(parameters, plan, seed)
    if plan.config.dora:
        _fill_magnitudes(network, parameters, plan.modules)


@torch.no_grad()
def _quantize(network: Network, plan: AdapterPlan) -> None:
    """Replace the adapted matrices of a whole network by 4-bit ones, one after another.

    Source: QLoRA (arXiv 2305.14314): NF4 in blocks of 64, whose scales are quantised, too.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in plan.modules:
        linear = network.get_submodule(name)
        weight, bias = linear.get_parameter("weight"), linear.bias
        outputs, inputs = weight.shape
        with torch.device("meta"):
            small = Linear4bit(
                inputs, outputs, bias is not None, compute_dtype=weight.dtype, quant_type="nf4"
            )
        small.weight = Params4bit(
            weight.detach(), requires_grad=False, quant_type="nf4", module=small
        )
        small.bias = bias
        network.set_submodule(name, small.to(weight.device))
    # PEFT asks for it.
    network.is_loaded_in_4bit = True


@torch.no_grad()
def _fill(parameters: dict[str, nn.Parameter], plan: AdapterPlan, seed: int) -> None:
    for module, (_, inputs) in plan.modules.items():
        name = parameter_name(module, A)
        owned, numel = owned_slice(parameters[name]), inputs * plan.config.rank
        draw = partial(_draw_uniform, bound=1 / math.sqrt(inputs))
        fill_drawn(owned, numel, hashed("lora", seed, name), draw)
        owned_slice(parameters[parameter_name(module, B)]).values.zero_()


def _draw_uniform(chunk: Tensor, generator: torch.Generator, bound: float) -> None:
    chunk.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def _fill_magnitudes(
    network: Network, parameters: dict[str, nn.Parameter], modules: Iterable[str]
) -> None:
    """Set each row's magnitude to its length; one matrix at a time is whole."""
    from peft.utils.integrations import dequantize_module_weight

    for name in modules:
        layer = network.get_submodule(name)
        dora: Any = layer.get_submodule(f"{MAGNITUDE}.{ADAPTER}")
        base = layer.get_submodule("base_layer")
        with _whole(base.get_parameter("weight")):
            weight = dequantize_module_weight(base).detach()
            lengths = dora.get_weight_norm(weight, torch.zeros_like(weight), scaling=1)
        owned = owned_slice(parameters[parameter_name(name, MAGNITUDE)])
        owned.values.copy_(lengths[owned.start : owned.start + len(owned.values)])


def _whole(parameter: nn.Parameter) -> Any:
    """Gather a partitioned parameter for reading; all ranks must do so."""
    if not is_partitioned(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


@contextmanager
def _magnitudes_without_values() -> Iterator[None]:
    """Let DoRA's magnitudes be made without their values.

    PEFT computes them from the base's weights when a layer is made. There these are partitioned,
    and PEFT gathers them only if transformers runs DeepSpeed.
    """
    from peft.tuners.lora.dora import DoraLinearLayer

    fill = DoraLinearLayer.update_layer

    def make(self: nn.Module, *, base_layer: nn.Linear, lora_A: Tensor, **_: Any) -> None:
        size = base_layer.out_features
        self.weight = nn.Parameter(torch.empty(size, dtype=lora_A.dtype, device=lora_A.device))

    DoraLinearLayer.update_layer = make
    try:
        yield
    finally:
        DoraLinearLayer.update_layer = fill


def _check(parameters: dict[str, nn.Parameter], plan: AdapterPlan) -> None:
    """Check that PEFT has made what was planned, and that nothing else is trained."""
    trained = {name: full_shape(p) for name, p in parameters.items() if p.requires_grad}
    planned = plan.parameter_shapes()
    if trained != planned:
        differ = sorted(dict(trained.items() ^ planned.items()))
        raise RuntimeError(f"peft made other adapters than were planned, first {differ[:3]}")
