"""The forward passes of a network, watched."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from llada_sft.model import Network


@contextmanager
def counted(model: Network) -> Iterator[list[Tensor]]:
    """Give a list to which each forward pass adds its `input_ids`."""
    passes: list[Tensor] = []

    def add(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passes.append((args[0] if args else kwargs["input_ids"]).clone())

    hook = model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()
