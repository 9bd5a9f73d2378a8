"""Parameters as `deepspeed.zero.Init` leaves them on one rank."""

import math
from typing import Any

import torch
from torch import nn


def partitioned(shape: tuple[int, ...], rank: int, world_size: int, memory: float = 0.0) -> Any:
    """Return an empty parameter with the rank's slice, full of what memory held before."""
    parameter: Any = nn.Parameter(torch.empty(0))
    parameter.ds_id, parameter.ds_shape = 0, torch.Size(shape)
    parameter.ds_zero_partition_rank = rank
    size = math.ceil(math.prod(shape) / world_size)
    parameter.ds_tensor = torch.full((size,), memory)
    return parameter
