"""Matrices, embeddings and norms whose values are whatever memory held until they are filled.

Torch's initialisation of a network of 8B parameters takes minutes, and would be thrown away.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A matrix, without bias if not asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Skip torch's initialisation."""


class Fp32Linear(Linear):
    """A matrix that multiplies in fp32, and whose buffers stay what they are, whatever its dtype.

    Two experts may differ by less than bf16 can tell.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] fp32."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self.get_buffer(name)
            kept = moved.to(buffer.dtype) if buffer.is_meta else buffer.to(moved.device)
            self.register_buffer(name, kept)
        return self


class Embedding(nn.Embedding):
    """A table of token vectors."""

    def reset_parameters(self) -> None:
        """Skip torch's initialisation."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / RMS(x) · weight, normalised in fp32."""
    normalised = F.rms_norm(x.float(), x.shape[-1:], eps=eps)
    # Cast before the product, as the official code does: bf16 rounds differently otherwise.
    return weight * normalised.to(x.dtype)


class RMSNorm(nn.Module):
    """x / RMS(x) · weight.

    Attributes:
        compute: `rms_norm`, or a kernel that computes the same.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps, self.compute = eps, rms_norm
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.eps)


def add_module(parent: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path; what is missing on the way becomes an empty module."""
    *containers, name = path.split(".")
    for container in containers:
        if not hasattr(parent, container):
            parent.add_module(container, nn.Module())
        parent = parent.get_submodule(container)
    parent.add_module(name, module)
