"""What the ranks of test_syncs.py run: training that counts what reads a value of the device."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sft.config import load_config
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.module import DiffusionModule
from llada_sft.training.trainer import train
from tests.distributed.training_workers import placement

ROOT = Path(__file__).parents[2]
# Operations whose result is a number of Python's, or has a size that depends on values.
_READS = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave",
    "aten::unique_dim",
}
_OF_COUNTING = ("__torch_dispatch__", "counted")
# What copies to the host: on CPU these are no operations.
_COPIES = ("cpu", "numpy", "tolist")


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls that would wait for a GPU, by the file and function that make them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().partition(".")[0]
        if name in _READS or (name.startswith("aten::index") and _by_booleans(args)):
            self.seen[caller(sys._getframe(1))] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count everything that is called here, in backward passes also."""
        with pytest.MonkeyPatch.context() as patch, self:
            for name in _COPIES:
                patch.setattr(Tensor, name, self._counted(getattr(Tensor, name)))
            yield

    def _counted(self, copy: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.seen[caller(sys._getframe(1))] += 1
            return copy(tensor, *args, **kwargs)

        return counted


def _by_booleans(args: tuple[Any, ...]) -> bool:
    """Whether the second argument of an operation is a list of indices with a mask."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list) else []
    return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)


def caller(frame: FrameType | None) -> str:
    """Return file and function of the innermost frame that is not torch's or the counting's."""
    while frame is not None:
        path, function = Path(frame.f_code.co_filename), frame.f_code.co_name
        _, installed, within = str(path).partition("/site-packages/")
        if installed and not within.startswith("torch/"):
            return f"{within}:{function}"
        if not installed and path.is_relative_to(ROOT) and function not in _OF_COUNTING:
            return f"{path.relative_to(ROOT)}:{function}"
        frame = frame.f_back
    return "torch"


def reads_of_steps(folder: str, config_file: str, overrides: list[str]) -> list[dict[str, int]]:
    """Train; return what each step read, by call site."""
    steps: list[dict[str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", _counting(steps))
        config = load_config(config_file, overrides)
        train(config, RunDir(Path(folder)), placement(), Host(lambda: False))
    return steps


def reads_of_planted() -> dict[str, int]:
    """Return what is counted in functions that read values in every way there is."""
    reads, values = Reads(), torch.arange(4.0, requires_grad=True)
    with reads.counting():
        planted_reads(values)
        doubled = values * 2
        doubled.register_hook(planted_hook)  # type: ignore[no-untyped-call]
        torch.autograd.backward(doubled.sum())
        torch.where(values > 1, values, 0.0).clamp(max=2.0)[torch.tensor([0, 1])].sum()
    return dict(reads.seen)


def planted_reads(values: Tensor) -> None:
    bool(values[0] > 1), float(values[1]), int(values[2]), values[3].item()
    values.tolist(), values.cpu(), values.detach().numpy()
    values[values > 1], values.masked_select(values > 1), torch.equal(values, values)
    torch.unique(values), torch.nonzero(values)


def planted_hook(gradient: Tensor) -> None:
    gradient[0].item()


_training_step = DiffusionModule.training_step


def _counting(steps: list[dict[str, int]]) -> Callable[..., None]:
    def training_step(self: DiffusionModule, batch: Any, batch_idx: int) -> None:
        reads = Reads()
        with reads.counting():
            _training_step(self, batch, batch_idx)
        steps.append(dict(reads.seen))

    return training_step
