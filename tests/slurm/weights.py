"""Whether two checkpoints hold the same numbers, bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import torch


def differences(one: Path, other: Path) -> list[str]:
    """List what differs between the weights and optimizer states of all ranks."""
    names, others = shard_names(one), shard_names(other)
    if names != others or not names:
        return [f"other files: {names} and {others}"]
    return [f"{name}: {key}" for name in names for key in _differing(one / name, other / name)]


def shard_names(checkpoint: Path) -> list[str]:
    """Name the files of DeepSpeed's ranks."""
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*_states.pt"))


def _differing(one: Path, other: Path) -> Iterator[str]:
    tensors, others = _load(one), _load(other)
    yield from sorted(tensors.keys() ^ others.keys())
    for key in sorted(tensors.keys() & others.keys()):
        if not _same(tensors[key], others[key]):
            yield key


def _load(file: Path) -> dict[str, torch.Tensor]:
    return dict(_tensors(torch.load(file, weights_only=False), ""))


def _tensors(item: object, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(item, torch.Tensor):
        yield key, item
    elif isinstance(item, dict):
        for name, value in item.items():
            yield from _tensors(value, f"{key}/{name}")
    elif isinstance(item, (list, tuple)):
        for number, value in enumerate(item):
            yield from _tensors(value, f"{key}/{number}")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    # As bytes: torch.equal takes 0.0 and -0.0 for the same, and NaN for another.
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(_bytes(one), _bytes(other)))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
