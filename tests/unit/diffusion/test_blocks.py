"""What blocks add to the noise: where they are, and their levels."""

import pytest
import torch

from llada_sft.diffusion.blocks import (
    block_key,
    block_level,
    blocks_with,
    draw_band,
    rotated,
)


def test_blocks_are_counted_from_the_start() -> None:
    tokens = torch.zeros(11, dtype=torch.bool)
    tokens[[2, 3, 9]] = True
    assert blocks_with(tokens, 4) == [slice(0, 4), slice(8, 11)]
    assert blocks_with(tokens, 1) == [slice(2, 3), slice(3, 4), slice(9, 10)]
    assert blocks_with(tokens & False, 4) == []


@pytest.mark.parametrize("u", [0.0, 0.3, 0.999999])
def test_rotated_levels_are_spread(u: float) -> None:
    levels = sorted(rotated(u, place, 7) for place in range(7))
    assert [int(7 * level) for level in levels] == list(range(7))
    assert all(0 <= level < 1 for level in levels)


def test_independent_levels_are_keyed_by_the_block() -> None:
    levels = {block_level(None, block_key(key, start), 0, 9) for key in (1, 2) for start in (0, 8)}
    assert len(levels) == 4
    assert block_level(None, block_key(1, 8), 0, 9) == block_level(None, block_key(1, 8), 3, 5)


def test_a_band_masks_as_often_as_its_level_says() -> None:
    response = torch.ones(20_000, dtype=torch.bool)
    first, second = draw_band(response, 0.25, key=3, band=(0.3, 0.8), twins=2)
    assert first.t == pytest.approx(0.3 + 0.25 * 0.5, abs=0.01)
    assert second.t == pytest.approx(0.3 + 0.75 * 0.5, abs=0.01)
    assert first.weight == pytest.approx(1 / first.t)
    (of_all,) = draw_band(response, 0.25, key=3, band=(0.3, 0.8), of_answer=False)
    assert of_all.weight == 1.0 and torch.equal(of_all.masked, first.masked)


def test_a_band_may_mask_nothing() -> None:
    response = torch.tensor([False, True])
    (noise,) = draw_band(response, 0.0, key=1, band=(0.0, 1e-9))
    assert not noise.masked.any() and noise.t == 0
