"""Which kernels compute the parts of a network: by the config, the packages and the device.

`auto` takes Liger's kernels, and flash-attn's, on CUDA where the packages are installed. What is
between the products of a block (norms, rotary positions, SwiGLU) is left to torch's compiler if
blocks are compiled: it fuses more of it. What a config asks for by name is used, or is an error.
The login node asks, without torch, whether its package is there; that of the optimizer, too.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple

from llada_sft.config.schema import Config
from llada_sft.config.sections.model import ModelConfig
from llada_sft.errors import ConfigError

if TYPE_CHECKING:
    import torch

# The most features of a head that flash-attn's kernel takes.
_MOST_FLASH_FEATURES = 256


class Package(NamedTuple):
    """A package with kernels: the range of versions is that of its extra in pyproject.toml.

    Attributes:
        name: Of the distribution.
        modules: What it needs to be imported.
        extra: Of this package.
        first: The first version whose functions take what we give them.
        beyond: The first one that may not.
    """

    name: str
    modules: tuple[str, ...]
    extra: str
    first: tuple[int, ...]
    beyond: tuple[int, ...]

    def problem(self) -> str | None:
        """Return why it cannot be used; None if it can."""
        if any(find_spec(module) is None for module in self.modules):
            return f"the package {self.name} is not installed"
        version = metadata.version(self.name)
        numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
        if not self.first <= numbers < self.beyond:
            first, beyond = (".".join(map(str, limit)) for limit in (self.first, self.beyond))
            return f"{self.name} is {version}, and one from {first} to before {beyond} is needed"
        return None


LIGER = Package("liger-kernel", ("liger_kernel", "triton"), "liger", (0, 8, 5), (0, 9))
FLASH = Package("flash-attn", ("flash_attn",), "flash", (2, 7, 1), (3,))
BITSANDBYTES = Package("bitsandbytes", ("bitsandbytes",), "adamw8bit", (0, 49), (1,))


@dataclass(frozen=True)
class Kernels:
    """What computes each part: torch's operations, if nothing else is said.

    Attributes:
        attention: Attention in packed rows.
        norm: RMSNorms, of blocks and the last one.
        swiglu: The product inside an MLP; not inside experts.
        rope: Rotary positions.
        loss: The cross-entropy of the head; not with a confidence loss.
    """

    attention: Literal["torch", "flash_attn"] = "torch"
    norm: Literal["torch", "liger"] = "torch"
    swiglu: Literal["torch", "liger"] = "torch"
    rope: Literal["torch", "liger"] = "torch"
    loss: Literal["torch", "liger"] = "torch"

    @property
    def has_liger(self) -> bool:
        return "liger" in (self.norm, self.swiglu, self.rope, self.loss)

    def line(self, compiled: bool) -> str:
        """Return the line about them; what is `torch` in a compiled block is compiled."""
        in_blocks = {"norm": self.norm, "swiglu": self.swiglu, "rope": self.rope}
        shown = {
            part: "compiled" if compiled and kernel == "torch" else kernel
            for part, kernel in in_blocks.items()
        }
        shown = {"attention": self.attention, **shown, "loss": self.loss}
        return "kernels: " + ", ".join(f"{part} {kernel}" for part, kernel in shown.items())


def missing_kernels(config: Config) -> list[str]:
    """Return one line for each thing that is asked for by name and whose package is not there."""
    asked = [(*named, "torch") for named in _by_name(config.model)]
    if config.optim.kind == "adamw_8bit":
        asked.append(("optim.kind", "adamw_8bit", BITSANDBYTES, "adamw"))
    lines = []
    for key, value, package, instead in asked:
        if problem := package.problem():
            install = f"run  pip install 'llada-sft[{package.extra}]'  or set it to {instead}"
            lines.append(f"{key}: {value}: {problem}: {install}")
    return lines


def choose_kernels(
    config: Config, head_dim: int, device: "torch.device", compiled: bool
) -> Kernels:
    """Choose what computes each part; the same on every rank, as their nodes are.

    Args:
        config: The whole config.
        head_dim: Features of a head.
        device: Where this rank computes.
        compiled: Whether blocks are compiled.

    Raises:
        ConfigError: A kernel is asked for by name that this rank cannot have; a line for each.
    """
    model = config.model
    on_cpu = [
        f"{key}: {value} needs CUDA, and this rank computes on the CPU; set it to auto or torch"
        for key, value, package in _by_name(model)
        if device.type != "cuda" and not (package == LIGER and _interprets_triton())
    ]
    if problems := missing_kernels(config) or on_cpu or _unfit_for_flash(model, head_dim, device):
        raise ConfigError("\n".join(problems))
    there = device.type == "cuda" and LIGER.problem() is None
    return Kernels(
        attention=_attention(config, head_dim, device),
        norm=_of(model.norm_kernel, there and not compiled),
        swiglu=_of(model.swiglu_kernel, there and not compiled),
        rope=_of(model.rope_kernel, there and not compiled),
        loss=_of(model.loss_kernel, there),
    )


def _of(asked: Literal["auto", "torch", "liger"], automatic: bool) -> Literal["torch", "liger"]:
    if asked == "auto":
        return "liger" if automatic else "torch"
    return asked


def _attention(
    config: Config, head_dim: int, device: "torch.device"
) -> Literal["torch", "flash_attn"]:
    asked = config.model.attention_kernel
    if asked != "auto":
        return asked
    fits = (
        device.type == "cuda"
        and config.unfit_for_flash_attention is None
        and FLASH.problem() is None
        and _why_not_flash(head_dim, device) is None
    )
    return "flash_attn" if fits else "torch"


def _unfit_for_flash(model: ModelConfig, head_dim: int, device: "torch.device") -> list[str]:
    if model.attention_kernel != "flash_attn":
        return []
    why = _why_not_flash(head_dim, device)
    return [f"model.attention_kernel: flash_attn {why}; set it to torch"] if why else []


def _why_not_flash(head_dim: int, device: "torch.device") -> str | None:
    """Return what a network and a GPU lack for flash-attn's kernel; None if nothing."""
    import torch

    from llada_sft.model.layers.attention import has_varlen_kernel

    if head_dim > _MOST_FLASH_FEATURES:
        return f"takes heads of at most {_MOST_FLASH_FEATURES} features, and these have {head_dim}"
    if not has_varlen_kernel(device, torch.bfloat16):
        return "needs a GPU of NVIDIA's Ampere or newer"
    return None


def _by_name(config: ModelConfig) -> Iterator[tuple[str, str, Package]]:
    """Yield the keys that ask for a kernel by name, its name, and its package."""
    if config.attention_kernel == "flash_attn":
        yield "model.attention_kernel", "flash_attn", FLASH
    for part in ("norm", "swiglu", "rope", "loss"):
        if getattr(config, f"{part}_kernel") == "liger":
            yield f"model.{part}_kernel", "liger", LIGER


def _interprets_triton() -> bool:
    """Whether Triton's kernels run on the CPU, in its interpreter, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
