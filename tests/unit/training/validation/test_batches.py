"""Validation batches: the same masks each time, and the mean loss of all ranks together."""

from dataclasses import replace

import pytest
import torch

from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.steps.collate import pad
from llada_sft.diffusion.likelihood import validation_noise
from llada_sft.diffusion.noise import noise_key
from llada_sft.errors import DataError
from llada_sft.training.consensus import Consensus
from llada_sft.training.noising import MicroBatch
from llada_sft.training.validation.batches import validation_micro_batches
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import EOS, MASK, VOCAB, example


def test_validation_batches_have_the_mean_loss_and_are_the_same_each_time() -> None:
    shares = [
        [example(1, 3, line, f"file{rank}") for line in range(5 - 4 * rank)] for rank in (0, 1)
    ]

    def work(rank: int, consensus: Consensus) -> list[MicroBatch]:
        rows = shares[rank]
        batches = [pad(rows[start : start + 2], EOS) for start in range(0, len(rows), 2)]
        return validation_micro_batches(batches, TokenIds(VOCAB, EOS, MASK), 2, consensus)

    first, again = on_ranks(2, work), on_ranks(2, work)
    assert [len(batches) for batches in first] == [3, 3]
    for one, other in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(one.noisy_ids, other.noisy_ids)
        assert torch.equal(one.coefficients, other.coefficients)
    # 6 examples in all, each with 1/6 of the mean; averaged over 2 ranks.
    sums = [sum(float(batch.coefficients.sum()) for batch in batches) / 2 for batches in first]
    assert sums == pytest.approx([5 / 6, 1 / 6])


def test_validation_without_an_example_is_refused_by_all_ranks() -> None:
    def work(rank: int, consensus: Consensus) -> str:
        with pytest.raises(DataError) as caught:
            validation_micro_batches([], TokenIds(VOCAB, EOS, MASK), 2, consensus)
        return str(caught.value)

    assert set(on_ranks(2, work)) == {
        "data.validation: none of its rows makes an example (the files are empty, or the hook"
        " drops every row): fix it, or set data.validation=null"
    }


def test_validation_masks_each_example_by_its_own_key() -> None:
    """Examples of one row, of two rows and of two files; the run's seed is no part of it."""
    places = [("a", 1, 0), ("a", 1, 1), ("a", 2, 0), ("b", 1, 0)]
    examples = [
        replace(example(2, 64), file=file, line=line, part=part) for file, line, part in places
    ]

    def work(rank: int, consensus: Consensus) -> list[MicroBatch]:
        ids = TokenIds(VOCAB, EOS, MASK)
        return validation_micro_batches([pad(examples, EOS)], ids, 1, consensus)

    ((batch,),) = on_ranks(1, work)
    masked = torch.zeros(batch.noisy_ids.shape, dtype=torch.bool).flatten()
    masked[batch.positions] = True
    rows = masked.view(4, -1)
    assert len({tuple(row.tolist()) for row in rows}) == 4
    for row, (file, line, part) in zip(rows, places, strict=True):
        key = noise_key(0, 0, file, line, part)
        noise = validation_noise(torch.arange(66) >= 2, key, draw=0, num_draws=1)
        assert torch.equal(row, noise.masked)
