"""FlexAttention's tiles and masks, by the definition; its values, not compiled.

Gradients need CUDA (tests/gpu).
"""

import pytest
import torch
from torch import Tensor

from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.flex import attend_flex, has_flex, plan_flex, seen_spans
from tests.unit.model.dense_blocks import dense_attention, dense_mask

CPU = torch.device("cpu")
# Torch warns where its kernel is not compiled.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
PACKS = [(300,), (70, 33, 1, 200), (128, 128), (5,)]


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("length", [1, 4, 32, 500])
@pytest.mark.parametrize("lengths", PACKS)
def test_spans_are_the_mask(lengths: tuple[int, ...], length: int, doubled: bool) -> None:
    blocks = Blocks(length, doubled)
    starts, ends = seen_spans(blocks, lengths)[..., None]
    key = torch.arange(starts.shape[1])
    assert torch.equal(((starts <= key) & (key < ends)).any(0), dense_mask(blocks, lengths))


def computed(tiles: Tensor, numbers: Tensor) -> Tensor:
    """Return which tiles are listed, [U, U] bool."""
    listed = torch.zeros(tiles.shape[-2:], dtype=torch.bool)
    for row, (order, number) in enumerate(zip(tiles[0, 0], numbers[0, 0], strict=True)):
        listed[row, order[: int(number)].long()] = True
    return listed


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("length", [1, 32, 500])
@pytest.mark.parametrize("lengths", PACKS)
def test_tiles_are_those_that_have_a_pair(
    lengths: tuple[int, ...], length: int, doubled: bool
) -> None:
    """No tile is computed for nothing, and none that is said to be whole has a pair to hide."""
    blocks = Blocks(length, doubled)
    mask, plan = dense_mask(blocks, lengths), plan_flex(blocks, lengths, None, CPU).mask
    whole = computed(plan.full_kv_indices, plan.full_kv_num_blocks)
    partly = computed(plan.kv_indices, plan.kv_num_blocks)
    assert not (whole & partly).any()
    for row, queries in enumerate(mask.split(128)):
        for column, tile in enumerate(queries.split(128, dim=1)):
            assert bool(whole[row, column] | partly[row, column]) == bool(tile.any())
            assert bool(tile.all()) or not whole[row, column]


@torch.no_grad()
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("lengths", PACKS)
def test_values_of_packs(lengths: tuple[int, ...], doubled: bool) -> None:
    blocks = Blocks(32, doubled)
    q = torch.randn(1, blocks.halves * sum(lengths), 4, 16)
    k, v = torch.randn(2, 1, q.shape[1], 2, 16)
    found = attend_flex(q, k, v, plan_flex(blocks, lengths, None, CPU))
    expected = dense_attention(q, k, v, dense_mask(blocks, lengths))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("doubled", [False, True])
def test_values_of_padded_rows(doubled: bool) -> None:
    blocks, real = Blocks(32, doubled), torch.arange(200) < torch.tensor([[200], [77]])
    both = real.repeat(1, blocks.halves)
    q, k, v = torch.randn(3, 2, both.shape[1], 2, 16)
    found = attend_flex(q, k, v, plan_flex(blocks, (200,), real, CPU))
    mask = dense_mask(blocks, (200,)) & both[:, None, None]
    torch.testing.assert_close(found[both], dense_attention(q, k, v, mask)[both], atol=1e-5, rtol=0)


def test_no_tile_is_whole_where_rows_have_padding() -> None:
    """Whole tiles are computed without asking for positions. Here all positions are one block."""
    real = torch.arange(200) < torch.tensor([[200], [77]])
    without, with_padding = (plan_flex(Blocks(500), (200,), each, CPU) for each in (None, real))
    assert without.mask.full_kv_num_blocks.sum() == 4
    assert with_padding.mask.full_kv_num_blocks.sum() == 0
    assert with_padding.mask.kv_num_blocks.sum() == 4


def test_other_devices_do_not_use_it() -> None:
    assert not has_flex(CPU, 64)
    assert not has_flex(torch.device("meta"), 64)
    # The kernel refuses heads of fewer than 16 features.
    assert not has_flex(torch.device("cuda"), 8)
