"""Matrices, embeddings and norms whose values are whatever memory held until they are filled.

Torch's initialisation of a network of 8B parameters takes minutes, and would be thrown away.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A matrix, without bias if not asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Skip torch's initialisation."""


class Embedding(nn.Embedding):
    """A table of token vectors."""

    def reset_parameters(self) -> None:
        """Skip torch's initialisation."""


class RMSNorm(nn.Module):
    """x / RMS(x) · weight, normalised in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        # Cast before the product, as the official code does: bf16 rounds differently otherwise.
        return self.weight * normalised.to(x.dtype)


def add_module(parent: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path; what is missing on the way becomes an empty module."""
    *containers, name = path.split(".")
    for container in containers:
        if not hasattr(parent, container):
            parent.add_module(container, nn.Module())
        parent = parent.get_submodule(container)
    parent.add_module(name, module)
