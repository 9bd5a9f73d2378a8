"""A rank's slice of a parameter: what DeepSpeed attaches is imitated here."""

from typing import Any

import pytest
import torch
from torch import nn

from llada_sft.model.partition import drop_second_slices, full_shape, is_partitioned, owned_slice
from tests.unit.model.slices import partitioned


def test_a_whole_parameter_is_its_own_slice() -> None:
    parameter = nn.Parameter(torch.arange(6.0).view(2, 3))
    owned = owned_slice(parameter)
    assert not is_partitioned(parameter) and full_shape(parameter) == (2, 3)
    assert owned.start == 0 and owned.values.tolist() == [0, 1, 2, 3, 4, 5]
    owned.values[4] = 9
    assert parameter[1, 1] == 9


@pytest.mark.parametrize(
    ("shape", "rank", "world_size", "start", "held"),
    [
        ((2, 5), 0, 3, 0, [7, 7, 7, 7]),
        ((2, 5), 1, 3, 4, [7, 7, 7, 7]),
        # Ten elements in slices of four: the last two of rank 2 are padding.
        ((2, 5), 2, 3, 8, [7, 7, 0, 0]),
        ((2, 4), 1, 2, 4, [7, 7, 7, 7]),
        # More ranks than elements: ranks 2 and 3 hold padding alone.
        ((2,), 1, 4, 1, [7]),
        ((2,), 3, 4, 3, [0]),
    ],
)
def test_the_padding_behind_a_parameter_becomes_zero(
    shape: tuple[int, ...], rank: int, world_size: int, start: int, held: list[float]
) -> None:
    parameter: Any = partitioned(shape, rank, world_size, memory=7.0)
    owned = owned_slice(parameter)
    assert is_partitioned(parameter) and full_shape(parameter) == shape
    assert (owned.start, len(owned.values)) == (start, held.count(7))
    assert parameter.ds_tensor.tolist() == held
    owned.values.fill_(5.0)
    assert parameter.ds_tensor.tolist() == [5 if one else 0 for one in held]


def test_a_second_slice_is_dropped_by_who_writes_the_first() -> None:
    for write in (owned_slice, lambda written: drop_second_slices(nn.ParameterList([written]))):
        parameter: Any = partitioned((2, 4), 1, 2, memory=7.0)
        parameter.ds_secondary_tensor = torch.ones(8)
        write(parameter)
        assert parameter.ds_secondary_tensor is None
    drop_second_slices(nn.Linear(2, 2))
