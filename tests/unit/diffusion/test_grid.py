"""The masks of a validation: spread over rows and draws, and each the uniform draw by itself."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.diffusion.grid import grid_levels, grid_masks


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    draws=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_each_row_has_one_level_in_each_part(lengths: list[int], draws: int, seed: int) -> None:
    levels = grid_levels(lengths, draws, seed)
    assert len(levels) == len(lengths)
    for of_row in levels:
        assert [int(level * draws) for level in of_row] == list(range(draws))


def test_the_levels_of_rows_of_one_length_are_spread() -> None:
    """Whatever other rows are between them: no part of [0, 1) has many more levels than others."""
    lengths = [5, 9] * 100
    levels = grid_levels(lengths, draws=2)
    for length in (5, 9):
        own = [level for n, of_row in zip(lengths, levels, strict=True) if n == length
               for level in of_row]  # fmt: skip
        counts = Counter(int(level * 20) for level in own)
        assert all(8 <= counts[part] <= 12 for part in range(20))


def test_another_seed_gives_other_levels() -> None:
    assert grid_levels([3, 4], 1, seed=0) == grid_levels([3, 4], 1)
    assert grid_levels([3, 4], 1, seed=0) != grid_levels([3, 4], 1, seed=1)


def test_a_mask_hides_its_level_of_the_response_and_nothing_of_the_prompt() -> None:
    response = torch.arange(13) >= 3
    masks = grid_masks(response, [0.0, 0.31, 0.999], key=5)
    assert [int(mask.masked.sum()) for mask in masks] == [1, 4, 10]
    assert [mask.t for mask in masks] == [0.1, 0.4, 1.0]
    assert [mask.weight for mask in masks] == [10, 2.5, 1]
    assert not any(bool(mask.masked[:3].any()) for mask in masks)


def test_padding_and_the_prompt_change_no_mask() -> None:
    levels = grid_levels([6], 4)[0]
    alone = grid_masks(torch.ones(6, dtype=torch.bool), levels, key=7)
    padded = grid_masks(torch.tensor([False] * 2 + [True] * 6 + [False] * 3), levels, key=7)
    for one, other in zip(alone, padded, strict=True):
        assert torch.equal(one.masked, other.masked[2:8])
        assert not other.masked[8:].any()


def test_each_mask_of_a_row_is_a_uniformly_random_subset() -> None:
    levels, keys = [0.1, 0.3, 0.6], 3000
    seen: list[Counter[tuple[int, ...]]] = [Counter() for _ in levels]
    for key in range(keys):
        masks = grid_masks(torch.ones(4, dtype=torch.bool), levels, key)
        for counter, mask in zip(seen, masks, strict=True):
            counter[tuple(mask.masked.nonzero().flatten().tolist())] += 1
    for counter, size in zip(seen, (1, 2, 3), strict=True):
        subsets = list(combinations(range(4), size))
        expected = keys / len(subsets)
        assert set(counter) == set(subsets)
        # Six standard deviations of a binomial count.
        assert all(abs(counter[one] - expected) < 6 * expected**0.5 for one in subsets)


@pytest.mark.parametrize(("draws", "most"), [(4, 0.2), (8, 0.08), (16, 0.04)])
def test_the_tokens_of_a_row_count_nearly_the_same(draws: int, most: float) -> None:
    """The spread of Σ 1 / l over tokens; drawn independently it is several times as large."""
    length = 6
    spreads = []
    for row, levels in enumerate(grid_levels([length] * 50, draws)):
        masks = grid_masks(torch.ones(length, dtype=torch.bool), levels, key=row)
        counted = sum(mask.masked.double() * mask.weight / length for mask in masks) / draws
        assert isinstance(counted, torch.Tensor)
        assert counted.sum().item() == pytest.approx(1)
        spreads.append(counted.std().item() * length / 2)
    assert sum(spreads) / len(spreads) < most


def test_a_row_without_a_response_is_refused() -> None:
    with pytest.raises(ValueError, match="without response tokens"):
        grid_masks(torch.zeros(3, dtype=torch.bool), [0.5], 0)
