"""The block objective: that it estimates the bound without bias, and how the band does not."""

import itertools
import math
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import pack, pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.training.consensus import Report
from llada_sft.training.masks.edits import write_predictions
from llada_sft.training.masks.level_losses import LevelLosses, LevelState
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import NoiseSource
from tests.unit.training.steps import EOS, MASK, report, source

BLOCK = 4
# A prompt token, then two blocks with 3 and 4 answer tokens.
LENGTH, ANSWERS = 8, (range(1, 4), range(4, 8))


def example(line: int, prompt: int = 1, length: int = LENGTH, **more: Any) -> Example:
    ids = np.random.default_rng(line).integers(0, MASK, length)
    ids[-1] = EOS
    mask = np.arange(length) >= prompt
    return Example(ids, mask, None, False, "a", line, 0, block_length=BLOCK, **more)


def step_of(rows: list[Example]) -> LocalStep:
    return LocalStep((pack(rows),), 0, {})


def table_of(seed: int) -> dict[tuple[int, ...], Tensor]:
    """Return the losses [tokens] of each block at each mask: larger where more is masked."""
    generator = torch.Generator().manual_seed(seed)
    return {
        mask: sum(mask) * torch.rand(len(block), generator=generator, dtype=torch.float64)
        for block in ANSWERS
        for mask in itertools.product((0, 1), repeat=len(block))
    }


TABLE = table_of(0)


def bound_of_blocks(masks: Collection[tuple[int, ...]] = TABLE) -> float:
    """Σ_blocks E over l ~ U{1..n} and all masks of l tokens of n / l Σ_masked loss."""
    total = 0.0
    for mask, losses in ((mask, TABLE[mask]) for mask in masks):
        count, size = sum(mask), len(mask)
        if count:
            chance = 1 / size / math.comb(size, count)
            total += chance * size / count * float((torch.tensor(mask) * losses).sum())
    return total


def losses_at(batch: MicroBatch, row: int) -> Tensor:
    """Return the losses of all positions of a packed row, [LENGTH], by the mask of each block."""
    masked = batch.noisy_ids[0, row * LENGTH : (row + 1) * LENGTH] == MASK
    found = torch.zeros(LENGTH, dtype=torch.float64)
    for block in ANSWERS:
        mask = tuple(int(masked[place]) for place in block)
        found[list(block)] = TABLE[mask]
    return found


def loss_of(batch: MicroBatch, num_rows: int) -> float:
    losses = torch.cat([losses_at(batch, row) for row in range(num_rows)])
    return float((batch.coefficients * losses[batch.positions]).sum())


def draws_of(steps: int, rows: int, **objective: Any) -> np.ndarray[Any, Any]:
    noise = source(kind="block", block_length=BLOCK, **objective)
    found = []
    for number in range(steps):
        first = rows * number
        step = step_of([example(first + place) for place in range(rows)])
        counts = report([step])
        counts = Report(
            counts.examples, counts.response_tokens, masked=noise.num_masked(step, number)
        )
        (batch,) = noise.micro_batches(step, counts, number)
        found.append(loss_of(batch, rows * noise.draws))
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["answer", "token"])
@pytest.mark.parametrize(
    "more", [{}, {"t_sampling": "independent"}, {"pairs": "antithetic"}], ids=str
)
def test_the_mean_over_draws_is_the_enumerated_bound(normalization: str, more: Any) -> None:
    found = draws_of(1000, 4, normalization=normalization, **more)
    error = found.std() / math.sqrt(len(found))
    # All answers have 7 tokens: both normalisations are the bound per token.
    assert abs(found.mean() - bound_of_blocks() / 7) < 3 * error
    assert error < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["answer", "token"])
def test_answers_of_several_lengths_have_the_mean_of_their_normalization(
    normalization: str,
) -> None:
    """Half of the examples have both blocks to learn, the others the second one alone."""
    both = bound_of_blocks()
    second = both - bound_of_blocks({mask for mask in TABLE if len(mask) == 3})
    expected = (both / 7 + second / 4) / 2 if normalization == "answer" else (both + second) / 11
    noise = source(kind="block", block_length=BLOCK, normalization=normalization)
    found = []
    for number in range(1500):
        rows = [example(4 * number + place, prompt=1 + 3 * (place % 2)) for place in range(4)]
        step = step_of(rows)
        (batch,) = noise.micro_batches(step, report([step]), number)
        found.append(loss_of(batch, 4))
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 3 * error


@pytest.mark.slow
def test_importance_levels_have_the_same_mean() -> None:
    objective = source(kind="block", block_length=BLOCK, t_density="importance").objective
    # Very unequal losses by level.
    sums = (*[40] * 16, *[2**20 * place for place in range(16)])
    found = []
    for number in range(1500):
        noise = NoiseSource(objective, 0, MASK, 0, 1, LevelLosses(0, LevelState(), 0))
        step = step_of([example(4 * number + place) for place in range(4)])
        counts = Report(step.num_examples, step.num_response_tokens, by_level=sums)
        (batch,) = noise.micro_batches(step, counts, number)
        found.append(loss_of(batch, 4))
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - bound_of_blocks() / 7) < 3 * error


def test_the_band_is_biased() -> None:
    found = draws_of(1000, 4, band=(0.3, 0.8), normalization="token")
    error, bound = found.std() / math.sqrt(len(found)), bound_of_blocks() / 7
    print(f"bound {bound:.4f}, band {found.mean():.4f} ± {error:.4f}")
    assert abs(found.mean() - bound) > 10 * error


def test_spread_levels_have_less_variance() -> None:
    spread, independent = draws_of(400, 8), draws_of(400, 8, t_sampling="independent")
    assert spread.var() < 0.7 * independent.var()


def test_the_band_is_the_mean_over_the_masked_tokens_of_all_ranks() -> None:
    rows = [example(line) for line in range(6)]
    steps = [LocalStep((pack(rows[:2]), pad(rows[2:3], EOS)), 0, {}), step_of(rows[3:])]
    noises = [
        source(rank, 2, kind="block", block_length=BLOCK, band=(0.3, 0.8), normalization="token")
        for rank in range(2)
    ]
    masked = sum(noise.num_masked(step, 3) for noise, step in zip(noises, steps, strict=True))
    counts = Report(6, 42, masked=masked)
    made = [
        batch
        for noise, step in zip(noises, steps, strict=True)
        for batch in noise.micro_batches(step, counts, 3)
    ]
    coefficients = torch.cat([batch.coefficients for batch in made])
    assert len(coefficients) == masked
    # Gradients are averaged over the two ranks.
    assert coefficients.tolist() == pytest.approx([2 / masked] * masked)


def test_the_band_of_answers_is_the_mean_over_those_of_each() -> None:
    rows = [example(line) for line in range(3)]
    noise = source(kind="block", block_length=BLOCK, band=(0.3, 0.8))
    (batch,) = noise.micro_batches(step_of(rows), Report(3, 21), 0)
    for row in range(3):
        own = batch.coefficients[batch.positions // LENGTH == row]
        assert own.tolist() == pytest.approx([1 / len(own) / 3] * len(own))


@pytest.mark.parametrize("together", [pack, lambda rows: pad(rows, EOS)], ids=["packed", "padded"])
def test_the_prompt_is_clean_in_both_halves(together: Any) -> None:
    rows = [example(1), example(2, prompt=5, length=12), example(3, prompt=9, length=16)]
    step = LocalStep((together(rows),), 0, {})
    (batch,) = source(kind="block", block_length=BLOCK).micro_batches(step, report([step]), 0)
    clean = torch.from_numpy(step.micro_batches[0].input_ids)
    noisy, other = batch.noisy_ids.chunk(2, dim=1)
    assert torch.equal(other, clean)
    changed = noisy != clean
    assert (noisy[changed] == MASK).all()
    assert torch.from_numpy(step.micro_batches[0].response_mask)[changed].all()
    # What is learned is in the noisy half, and each block with answer tokens has some.
    assert torch.equal(batch.noisy_ids.flatten()[batch.positions], noisy[changed])
    assert torch.equal(batch.targets, clean[changed])
    assert batch.blocks is not None and (batch.blocks.length, batch.blocks.doubled) == (4, True)
    assert batch.levels is not None
    assert len(batch.levels.levels) == 2 + 2 + 2
    assert batch.levels.num_examples == 3


def test_levels_of_a_long_answer_are_spread() -> None:
    row = example(1, prompt=0, length=BLOCK * 10)
    step = step_of([row])
    (batch,) = source(kind="block", block_length=BLOCK).micro_batches(step, report([step]), 0)
    assert batch.levels is not None
    assert sorted(int(10 * level) for level in batch.levels.levels) == list(range(10))


def test_the_tokens_of_a_block_do_not_depend_on_what_is_packed_with_it() -> None:
    rows = [example(line, prompt=2, length=16) for line in range(3)]
    noise = source(kind="block", block_length=BLOCK, t_sampling="independent")
    (packed,) = noise.micro_batches(step_of(rows), Report(3, 42), 0)
    (alone,) = noise.micro_batches(step_of(rows[2:]), Report(3, 42), 7)
    assert torch.equal(packed.noisy_ids[0, 32:48], alone.noisy_ids[0, :16])


def test_a_void_end_in_blocks() -> None:
    """The EOS and void tokens are always masked, also where a block has nothing else."""
    row = example(1, prompt=1, length=12, hidden=6)
    row.response_mask[7:] = False
    row.response_mask[6] = True
    noise = source(kind="block", block_length=BLOCK, void_weight=0.5, confidence_weight=1.0)
    step = step_of([row])
    assert step.num_response_tokens == 6
    (batch,) = noise.micro_batches(step, report([step]), 0)
    at = dict(zip(batch.positions.tolist(), batch.coefficients.tolist(), strict=True))
    assert (batch.noisy_ids[0, 6:12] == MASK).all()
    assert at[6] == pytest.approx(1 / 6)
    assert [at[place] for place in range(7, 12)] == pytest.approx([0.5 / 5] * 5)
    # Blocks of 3 and 2 answer tokens.
    first = [at[place] for place in range(1, 4) if place in at]
    second = [at[place] for place in range(4, 6) if place in at]
    assert first == pytest.approx([3 / len(first) / 6] * len(first))
    assert second == pytest.approx([2 / len(second) / 6] * len(second))
    assert batch.terms is not None and batch.terms.confidence is not None
    confidence = dict(zip(batch.positions.tolist(), batch.terms.confidence.tolist(), strict=True))
    assert confidence[6] == pytest.approx(3 / 6) and confidence[9] == 0.0


def test_an_empty_micro_batch_counts_for_nothing() -> None:
    step = LocalStep((pad([], EOS),), 0, {})
    (batch,) = source(kind="block", block_length=BLOCK).micro_batches(step, Report(1, 7), 0)
    assert batch.noisy_ids.shape == (1, 2) and batch.coefficients.tolist() == [0.0]


@pytest.mark.parametrize("by", ["random", "model"])
def test_replaced_tokens(by: str) -> None:
    from llada_sft.config.sections.objective import ObjectiveConfig
    from llada_sft.data.examples.tokenizer import TokenIds
    from llada_sft.training.masks.edits import EditSource

    rows = [example(line, prompt=3, length=40) for line in range(40)]
    objective = ObjectiveConfig.model_validate(
        {
            "kind": "block",
            "block_length": BLOCK,
            "edit": {"share": 0.25, "from": by, "weight": 0.5},
            "confidence_weight": 1.0,
        }
    )
    edits = EditSource(objective.edit, TokenIds(10, EOS, MASK), never=[7])
    step = step_of(rows)
    (plain,) = source(kind="block", block_length=BLOCK).micro_batches(step, report([step]), 0)
    noise = NoiseSource(objective, 0, MASK, 0, 1, edits=edits)
    (batch,) = noise.micro_batches(step, report([step]), 0)
    assert batch.replaced is not None
    clean = torch.from_numpy(step.micro_batches[0].input_ids)[0]
    # What is masked is what is masked without.
    assert torch.equal(batch.positions[~batch.replaced], plain.positions)
    assert torch.equal(batch.coefficients[~batch.replaced], plain.coefficients)
    places = batch.positions[batch.replaced]
    free = 40 * 37 - len(plain.positions)
    assert abs(len(places) / free - 0.25) < 3 * math.sqrt(0.25 * 0.75 / free)
    assert torch.equal(batch.targets[batch.replaced], clean[places])
    assert batch.coefficients[batch.replaced].tolist() == pytest.approx(
        [0.5 / 37 / 40] * len(places)
    )
    assert torch.equal(batch.noisy_ids[0, len(clean) :], clean)
    assert batch.terms is not None and batch.terms.confidence is not None
    assert not batch.terms.confidence[batch.replaced].any()
    there = batch.noisy_ids[0, places]
    if by == "random":
        assert set(there.tolist()) == set(range(7))
        assert (there != clean[places]).all()
    else:
        assert (there == MASK).all()
        predicted = torch.arange(len(batch.positions)) % 10
        write_predictions(batch, predicted, MASK)
        own = predicted[batch.replaced]
        expected = torch.where(own == MASK, clean[places], own)
        assert torch.equal(batch.noisy_ids[0, places], expected)
        assert (batch.noisy_ids[0, plain.positions] == MASK).all()
