"""Which matrices LoRA adapts, and what its parameters are called: worked out without torch.

A target is the end of a module's name, at a dot, as PEFT has it: `q_proj`, `mlp.up_proj`, or
`3.q_proj` for the fourth block alone. Targets are looked for inside blocks only. LLaDA shows why:
its head is called `ff_out`, and so is a matrix of each block.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod, sqrt

from llada_sft.config.sections.model import LoraConfig
from llada_sft.errors import ConfigError
from llada_sft.model.families.architecture import Architecture, Shape, Shapes

# PEFT's name of an adapter that nobody has named. It is part of the names of parameters.
ADAPTER = "default"
A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"


@dataclass(frozen=True)
class AdapterPlan:
    """The adapters of a network.

    Attributes:
        config: The lora section.
        modules: Shape of each adapted matrix, [outputs, inputs], by the name of its module.
        matches: How many matrices each target has found.
        num_base: Elements of the network's own parameters.
        blocks: Where the blocks are.
    """

    config: LoraConfig
    modules: Mapping[str, Shape]
    matches: Mapping[str, int]
    num_base: int
    blocks: str

    @property
    def scale(self) -> float:
        """What B · A is multiplied by: alpha / rank, with rsLoRA alpha / √rank."""
        rank = self.config.rank
        return self.config.alpha / (sqrt(rank) if self.config.rslora else rank)

    def parameter_shapes(self) -> Shapes:
        """Return the shape of each trained parameter by its name in the network."""
        shapes: Shapes = {}
        for module, (outputs, inputs) in self.modules.items():
            shapes[parameter_name(module, A)] = (self.config.rank, inputs)
            shapes[parameter_name(module, B)] = (outputs, self.config.rank)
            if self.config.dora:
                shapes[parameter_name(module, MAGNITUDE)] = (outputs,)
        return shapes

    @property
    def num_trained(self) -> int:
        """Elements of all trained parameters."""
        return sum(map(prod, self.parameter_shapes().values()))

    @property
    def pattern(self) -> str:
        """A regular expression that matches the names of the adapted modules, and no others."""
        of_layers: dict[tuple[str, ...], list[str]] = {}
        for kind, layers in self._layers_of_kinds.items():
            of_layers.setdefault(layers, []).append(kind)
        return "|".join(
            rf"{re.escape(self.blocks)}\.({'|'.join(layers)})\.({'|'.join(map(re.escape, kinds))})"
            for layers, kinds in of_layers.items()
        )

    @property
    def _layers_of_kinds(self) -> dict[str, tuple[str, ...]]:
        """The numbers of the blocks in which each kind of matrix is adapted."""
        layers: dict[str, tuple[str, ...]] = {}
        for module in self.modules:
            layer, _, kind = module.removeprefix(f"{self.blocks}.").partition(".")
            layers[kind] = (*layers.get(kind, ()), layer)
        return layers

    def record(self, base: str, dtype: str) -> dict[str, object]:
        """Return what a checkpoint says about its adapters.

        Args:
            base: Identifies the network's own weights.
            dtype: Of the adapters; that of the network.
        """
        return {**self.config.model_dump(mode="json"), "dtype": dtype, "base_weights": base}

    def line(self) -> str:
        """Say what is trained: the matches of each target, and how much of the network it is."""
        found = ", ".join(f"{target} {count}" for target, count in self.matches.items())
        kind = "DoRA" if self.config.dora else "LoRA"
        return (
            f"lora             {kind} of rank {self.config.rank}, scale {self.scale:g}: {found};"
            f" {self.num_trained:,} parameters are trained,"
            f" {self.num_trained / self.num_base:.2%} of {self.num_base:,}"
        )


def missing_packages(config: LoraConfig) -> list[str]:
    """Return one line for each package that LoRA needs and that is not installed."""
    lines = []
    if find_spec("peft") is None:
        lines.append("lora: the package peft is not installed: run  pip install 'llada-sft[lora]'")
    if config.base == "nf4" and find_spec("bitsandbytes") is None:
        lines.append(
            "lora.base: nf4: the package bitsandbytes is not installed:"
            " run  pip install 'llada-sft[nf4]'  or set lora.base=full"
        )
    return lines


def parameter_name(module: str, part: str) -> str:
    """Return the name of a parameter of an adapter."""
    return f"{module}.{part}.{ADAPTER}.weight"


def plan_adapters(network: Architecture, config: LoraConfig) -> AdapterPlan:
    """Find the matrices that the targets name; without targets, those of the family's default.

    Raises:
        ConfigError: A target matches nothing, or what cannot be adapted; one line for each.
    """
    inside = _matrices_in_blocks(network)
    router = network.names.of_block.router
    by_default = {name: shape for name, shape in inside.items() if not _ends(name, [router])}
    targets = sorted(network.linear_names()) if config.targets is None else config.targets
    candidates = by_default if config.targets is None else inside
    found = {target: [name for name in candidates if _ends(name, [target])] for target in targets}
    if unmatched := [target for target, names in found.items() if not names]:
        lines = (_unmatched(network, target, by_default) for target in unmatched)
        raise ConfigError("\n".join(lines))
    adapted = {name for names in found.values() for name in names}
    return AdapterPlan(
        config,
        modules={name: shape for name, shape in inside.items() if name in adapted},
        matches={target: len(names) for target, names in found.items()},
        num_base=sum(map(prod, network.parameter_shapes().values())),
        blocks=network.names.blocks,
    )


def _matrices_in_blocks(network: Architecture) -> Shapes:
    """Return the matrices that a module of their own multiplies by: no norms, and no experts."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in network.parameter_shapes().items()
        if name.startswith(f"{network.names.blocks}.")
        and name.endswith(".weight")
        and len(shape) == 2
    }


def _ends(name: str, targets: Sequence[str]) -> bool:
    return any(target and f".{name}".endswith(f".{target}") for target in targets)


def _unmatched(network: Architecture, target: str, by_default: Mapping[str, Shape]) -> str:
    names = network.names
    where = f"lora.targets: {target!r}"
    if _ends(names.embedding, [target]) or _ends(names.head, [target]):
        return (
            f"{where}: the embedding and the head cannot be adapted: the loss is computed inside"
            " the head, piece by piece; remove it"
        )
    prefix = f"{names.blocks}."
    kinds = dict.fromkeys(name.removeprefix(prefix).partition(".")[2] for name in by_default)
    router = f", and the router {names.of_block.router}" if network.experts is not None else ""
    return f"{where}: matches no matrix; there are {', '.join(kinds)}{router}"
