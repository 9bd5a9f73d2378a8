"""The part of a parameter that this process keeps: all of it, or its ZeRO-3 slice.

Under `deepspeed.zero.Init` a parameter is flattened, padded to a multiple of the world size and
cut into equal slices; the rank's own is `ds_tensor`, and the parameter itself is empty. DeepSpeed
has no public way to write a slice, so its attribute names are used here and nowhere else.

With `zero_hpz_partition_size` a parameter has a second slice, of the ranks of a node, which is made
when the parameter is born and is gathered instead of the first. Whoever writes slices drops it;
DeepSpeed makes it again from the whole parameter, after its next use.
"""

import math
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from torch import Tensor, nn


@dataclass(frozen=True)
class OwnedSlice:
    """Elements [start, start + len(values)) of a flattened parameter.

    Attributes:
        values: [n] floating, the memory itself: writing to it sets the parameter. n may be 0.
        start: Index of the first one in the flattened parameter.
    """

    values: Tensor
    start: int


class PartitionedParameter(Protocol):
    """What DeepSpeed attaches to a parameter that it has cut up."""

    ds_shape: tuple[int, ...]
    ds_tensor: Tensor
    ds_zero_partition_rank: int
    ds_secondary_tensor: Tensor | None


def is_partitioned(parameter: Tensor) -> TypeGuard[PartitionedParameter]:
    """Return whether the parameter is partitioned over all ranks."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole parameter or buffer, wherever its parts are."""
    return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)


def owned_slice(parameter: Tensor) -> OwnedSlice:
    """Return this process's part of a parameter for writing; of a buffer, all of it.

    The padding after it is set to zero, and a second slice is dropped.
    """
    if not is_partitioned(parameter):
        return OwnedSlice(parameter.detach().view(-1), 0)
    parameter.ds_secondary_tensor = None
    partition = parameter.ds_tensor
    start = parameter.ds_zero_partition_rank * partition.numel()
    num_real = min(max(math.prod(parameter.ds_shape) - start, 0), partition.numel())
    partition[num_real:].zero_()
    return OwnedSlice(partition[:num_real], start)


def drop_second_slices(model: nn.Module) -> None:
    """Drop what ranks of a node keep for each other; the slices themselves were written."""
    for parameter in model.parameters():
        if is_partitioned(parameter):
            parameter.ds_secondary_tensor = None
