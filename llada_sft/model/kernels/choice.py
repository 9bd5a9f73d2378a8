"""Which kernels compute the parts of a network: by the config, the packages and the device.

`auto` takes Liger's kernels on CUDA where the package is installed. What is between the products of
a block (norms, rotary positions, SwiGLU) is left to torch's compiler if blocks are compiled: it
fuses more of it. What a config asks for by name is used, or is an error. The login node asks,
without torch, whether its package is there.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from llada_sft.config.model_section import ModelConfig
from llada_sft.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Of liger-kernel: the first version whose functions take what we give them, and the first that may
# not. It is the range of the extra in pyproject.toml.
_LIGER_FROM, _LIGER_BEFORE = (0, 8, 5), (0, 9)
_INSTALL_LIGER = "run  pip install 'llada-sft[liger]'  or set it to torch"


@dataclass(frozen=True)
class Kernels:
    """What computes each part: torch's operations, if nothing else is said.

    Attributes:
        norm: RMSNorms, of blocks and the last one.
        swiglu: The product inside an MLP; not inside experts.
        rope: Rotary positions.
        loss: The cross-entropy of the head; not with a confidence loss.
    """

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
        shown["loss"] = self.loss
        return "kernels: " + ", ".join(f"{part} {kernel}" for part, kernel in shown.items())


def missing_kernels(config: ModelConfig) -> list[str]:
    """Return one line for each kernel that is asked for by name and whose package is not there."""
    if (problem := _liger_problem()) is None:
        return []
    return [f"{key}: liger: {problem}: {_INSTALL_LIGER}" for key in _asks_for_liger(config)]


def choose_kernels(config: ModelConfig, device: "torch.device", compiled: bool) -> Kernels:
    """Choose what computes each part; the same on every rank, as their nodes are.

    Args:
        config: The model section.
        device: Where this rank computes.
        compiled: Whether blocks are compiled.

    Raises:
        ConfigError: A kernel is asked for by name that this rank cannot have; a line for each.
    """
    if problems := missing_kernels(config):
        raise ConfigError("\n".join(problems))
    runs = device.type == "cuda" or _interprets_triton()
    if not runs and (named := list(_asks_for_liger(config))):
        raise ConfigError(
            "\n".join(
                f"{key}: liger needs CUDA, and this rank computes on the CPU; set it to auto or"
                " torch"
                for key in named
            )
        )
    there = device.type == "cuda" and _liger_problem() is None
    return Kernels(
        norm=_of(config.norm_kernel, there and not compiled),
        swiglu=_of(config.swiglu_kernel, there and not compiled),
        rope=_of(config.rope_kernel, there and not compiled),
        loss=_of(config.loss_kernel, there),
    )


def _of(asked: Literal["auto", "torch", "liger"], automatic: bool) -> Literal["torch", "liger"]:
    if asked == "auto":
        return "liger" if automatic else "torch"
    return asked


def _asks_for_liger(config: ModelConfig) -> Iterator[str]:
    for part in ("norm", "swiglu", "rope", "loss"):
        if getattr(config, f"{part}_kernel") == "liger":
            yield f"model.{part}_kernel"


def _interprets_triton() -> bool:
    """Whether Triton's kernels run on the CPU, in its interpreter, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _liger_problem() -> str | None:
    """Return why Liger's kernels cannot be used; None if they can."""
    if find_spec("liger_kernel") is None or find_spec("triton") is None:
        return "the package liger-kernel is not installed"
    version = metadata.version("liger-kernel")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not _LIGER_FROM <= numbers < _LIGER_BEFORE:
        wanted = ".".join(map(str, _LIGER_FROM))
        return f"liger-kernel is {version}, and {wanted} or a later 0.8 is needed"
    return None
