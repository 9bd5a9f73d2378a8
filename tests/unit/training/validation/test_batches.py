"""Every item once, in the same micro-batch on any ranks, and always with the same mask."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.placement import Placement
from llada_sft.training.validation.batches import GridBatch, ValidationBatches
from llada_sft.training.validation.rows import ValidationSet
from tests.unit.training.steps import EOS, MASK, VOCAB, example

IDS = TokenIds(VOCAB, EOS, MASK)


def batches_of(
    sets: Sequence[ValidationSet],
    rank: int = 0,
    world_size: int = 1,
    size: int = 2,
    draws: int = 2,
    **data: Any,
) -> ValidationBatches:
    config = DataConfig.model_validate({"train": "none", "end": 1, "max_length": 99, **data})
    place = Placement(rank, world_size, rank, 0, "localhost", 1)
    return ValidationBatches(sets, config, IDS, place, size, draws)


def rows(*lengths: int, name: str = "") -> ValidationSet:
    return ValidationSet(name, [example(2, n, line) for line, n in enumerate(lengths, start=1)])


def contents(batch: GridBatch) -> tuple[Any, ...]:
    made = batch.batch
    return (batch.items, made.noisy_ids.tolist(), made.positions.tolist(), made.targets.tolist())


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    more=st.lists(st.integers(1, 6), max_size=3),
    world_size=st.integers(1, 5),
    size=st.integers(1, 4),
    draws=st.integers(1, 4),
    packed=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_micro_batches_are_the_same_on_any_ranks(
    lengths: list[int], more: list[int], world_size: int, size: int, draws: int, packed: bool
) -> None:
    sets = [rows(*lengths, name="a")] + ([rows(*more, name="b")] if more else [])
    options: dict[str, Any] = {"draws": draws, "size": size}
    if packed:
        options |= {"batching": "packed", "max_tokens": 120, "size": 1}
    alone = list(batches_of(sets, **options))
    ranks = [batches_of(sets, rank, world_size, **options) for rank in range(world_size)]
    dealt = [list(of_rank) for of_rank in ranks]
    assert {len(of_rank) for of_rank in dealt} == {len(ranks[0])}
    in_turn = [batch for turn in zip(*dealt, strict=True) for batch in turn]
    assert [contents(batch) for batch in in_turn if batch.items] == [contents(b) for b in alone]
    items = [item for batch in alone for item in batch.items]
    assert sorted(items) == list(range(draws * (len(lengths) + len(more))))
    # Ranks without rows run the network, too.
    assert all(len(batch.batch.positions) for batch in in_turn)


def test_they_are_the_same_each_time() -> None:
    batches = batches_of([rows(3, 4, 5)])
    assert [contents(batch) for batch in batches] == [contents(batch) for batch in batches]


def test_masks_are_keyed_by_the_row() -> None:
    """Rows of one length at one place of the sequence, but of other lines, files and parts."""
    places = [("a", 1, 0), ("a", 1, 1), ("a", 2, 0), ("b", 1, 0)]
    seen = set()
    for file, line, part in places:
        one = replace(example(2, 64), file=file, line=line, part=part)
        (batch,) = batches_of([ValidationSet("", [one])], draws=1)
        seen.add(tuple(batch.batch.positions.tolist()))
    assert len(seen) == 4


def test_the_coefficients_are_those_of_the_loss_of_a_row() -> None:
    (batch,) = batches_of([rows(6, 4)], size=9)
    examples = batch.examples
    for number in range(len(batch.items)):
        own = batch.batch.coefficients[examples == number]
        assert torch.equal(own, torch.full_like(own, 1 / len(own)))


def test_weights_of_the_data_stand_next_to_the_coefficients() -> None:
    weights = np.array([0, 0, 2, 2], np.float32)
    heavy: Example = replace(example(2, 2), loss_weights=weights)
    (batch,) = batches_of([ValidationSet("", [heavy])], draws=1)
    number = len(batch.batch.positions)
    assert batch.batch.coefficients.tolist() == pytest.approx([1 / number] * number)
    assert batch.weights.tolist() == [2.0] * number


def test_what_the_hook_has_corrupted_stays_as_it_is() -> None:
    corrupted = replace(example(1, 3), noisy_ids=np.array([1, 2, 3, 4]))
    batches = batches_of([ValidationSet("", [corrupted])], draws=3, size=1)
    assert batches.sets[0].corrupted == (True,)
    for batch in batches:
        assert batch.batch.noisy_ids.tolist() == [[1, 2, 3, 4]]
        assert batch.batch.positions.tolist() == [1, 2, 3]
        assert batch.batch.coefficients.tolist() == pytest.approx([1 / 3] * 3)


def in_blocks(prompt: int, length: int, line: int, **more: Any) -> Example:
    one = example(prompt, length - prompt, line)
    return replace(one, block_length=4, **more)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_blocks_are_the_same_on_any_ranks_and_spread(world_size: int) -> None:
    """Each mask has masked tokens in each block, and the masks of a block differ in how many."""
    rows_of = [in_blocks(1, 8, 1), in_blocks(5, 16, 2), in_blocks(3, 12, 3)]
    sets = [ValidationSet("", rows_of)]
    alone = list(batches_of(sets, draws=4))
    ranks = [list(batches_of(sets, rank, world_size, draws=4)) for rank in range(world_size)]
    in_turn = [batch for turn in zip(*ranks, strict=True) for batch in turn if batch.items]
    assert [contents(batch) for batch in in_turn] == [contents(batch) for batch in alone]
    weights: dict[int, float] = {}
    for batch in alone:
        assert batch.batch.blocks is not None and batch.batch.blocks.doubled
        for number, item in enumerate(batch.items):
            own = batch.examples == number
            weights[item] = float(batch.batch.coefficients[own].sum())
            length = int(rows_of[item // 4].response_mask.sum())
            # Each block counts its answer tokens, whatever is masked of it.
            assert weights[item] == pytest.approx(length / length)
    assert sorted(weights) == list(range(12))


def test_void_tokens_that_fill_a_block_up_count_for_nothing() -> None:
    row = in_blocks(1, 8, 1, hidden=3)
    row.response_mask[6:] = False
    (batch,) = batches_of([ValidationSet("", [row])], draws=1)
    made = batch.batch
    # They are masked, as in training, and not among what is counted.
    assert made.noisy_ids[0, 5:8].tolist() == [MASK] * 3
    assert 5 in made.positions.tolist() and not {6, 7} & set(made.positions.tolist())
    assert len(made.positions) == len(made.targets) == len(made.coefficients)
