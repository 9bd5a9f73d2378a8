"""Attention in blocks, alone: against dense masks, in float64."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sft.model.layers.blocks import Blocks, attend_in_blocks, plan_blocks
from tests.unit.model.dense_blocks import dense_attention, dense_mask

BLOCK_LENGTHS = [1, 4, 32, 500]


def heads(
    num_rows: int, positions: int, num_heads: int, kv_heads: int, seed: int = 0
) -> list[Tensor]:
    """Draw queries, keys, values and what the result is multiplied by, all in float64."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(num_rows, positions, number, 4) for number in (num_heads, kv_heads, kv_heads)]
    drawn = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    slopes = torch.randn(shapes[0], generator=random, dtype=torch.float64)
    return [*(x.requires_grad_() for x in drawn), slopes]


def assert_same(inputs: Sequence[Tensor], found: Tensor, expected: Tensor, slopes: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    for got, wanted in zip(
        torch.autograd.grad(found, inputs, slopes),
        torch.autograd.grad(expected, inputs, slopes),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("length", BLOCK_LENGTHS)
@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_packs_equal_the_dense_mask(
    doubled: bool, length: int, lengths: list[int], groups: int, seed: int
) -> None:
    """Values and gradients, whatever the documents, with grouped heads too."""
    blocks = Blocks(length, doubled)
    *qkv, slopes = heads(1, blocks.halves * sum(lengths), 2 * groups, 2, seed)
    found = attend_in_blocks(*qkv, plan_blocks(blocks, lengths, None))
    expected = dense_attention(*qkv, dense_mask(blocks, lengths))
    assert_same(qkv, found, expected, slopes)


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_padded_rows_equal_the_dense_mask(doubled: bool, length: int) -> None:
    """Padding is at the end of rows, be it within a block or of whole blocks."""
    blocks, width = Blocks(length, doubled), 70
    real = torch.arange(width) < torch.tensor([[70], [33], [1]])
    *qkv, slopes = heads(3, blocks.halves * width, 4, 2)
    both = real.repeat(1, blocks.halves)
    slopes = slopes * both[..., None, None]
    found = attend_in_blocks(*qkv, plan_blocks(blocks, (width,), real))
    mask = dense_mask(blocks, (width,)) & both[:, None, None]
    expected = dense_attention(*qkv, mask)
    shown = both[..., None, None]
    assert_same(qkv, found * shown, torch.where(shown, expected, 0), slopes)


def test_a_block_has_at_least_one_position() -> None:
    with pytest.raises(ValueError, match="blocks: the length must be at least 1, got 0"):
        Blocks(0)


def test_the_mask_of_the_official_training() -> None:
    """[noisy ; clean] of one sequence of 20 in blocks of 8, written down row by row."""
    mask = dense_mask(Blocks(8, doubled=True), (20,))
    assert mask.shape == (40, 40)
    # A noisy position of the second block: its block, and the first clean one.
    assert mask[9].nonzero().flatten().tolist() == [*range(8, 16), *range(20, 28)]
    # A noisy one of the last block, which has four positions.
    assert mask[19].nonzero().flatten().tolist() == [*range(16, 20), *range(20, 36)]
    # A clean one of the second block: the first two.
    assert mask[20 + 9].nonzero().flatten().tolist() == [*range(20, 36)]


class Alive(TorchDispatchMode):
    """Remembers the most bytes of results of operations that are in memory together."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._sizes = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                self._sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._sizes = {key: one for key, one in self._sizes.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._sizes.values()))
        return results


def most_bytes(lengths: Sequence[int]) -> int:
    """Return those of a forward and backward pass of a pack, above queries, keys and values."""
    positions = 2 * sum(lengths)
    inputs = [torch.randn(1, positions, number, 16, requires_grad=True) for number in (2, 1, 1)]
    slopes, plan = torch.ones(1, positions, 2, 16), plan_blocks(Blocks(32, True), lengths, None)
    with Alive() as alive:
        torch.autograd.grad(attend_in_blocks(*inputs, plan), inputs, slopes)
    return alive.most


@pytest.mark.slow
@pytest.mark.parametrize("of_chat", [False, True])
def test_memory_grows_with_the_row(of_chat: bool) -> None:
    """A pack of 8,192, be it one document or many: a tenth of its dense mask of one byte a pair."""
    short, long = (
        [320, 96, 608] * (positions // 1024) if of_chat else [positions]
        for positions in (4096, 8192)
    )
    assert most_bytes(long) < (2 * 8192) ** 2 / 10
    assert most_bytes(long) < 2.1 * most_bytes(short)


def test_the_count_of_bytes_sees_a_dense_mask() -> None:
    q = torch.randn(1, 2, 512, 16)
    with Alive() as alive:
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(512, 512).bool())
    assert alive.most > 512 * 512
