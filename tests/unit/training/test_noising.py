"""Coefficients over the global batch, and noise by key."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.utils import apply_to_tensors_only
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars, move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.diffusion.objective import diffusion_loss, masked_cross_entropy
from llada_sft.training import noising
from llada_sft.training.consensus import Report
from llada_sft.training.noising import NoiseSource, StepBatch
from tests.unit.training.steps import (
    EOS,
    MASK,
    TABLE,
    example,
    local_step,
    logits_at,
    report,
    source,
)


def test_coefficients_by_hand() -> None:
    """4 and 2 response tokens; each masked one has (L / l) / (L N) = 1 / (l N)."""
    step = local_step([example(2, 4), example(4, 2, line=2)], StepSize(2, 1))
    (batch,) = source().micro_batches(step, report([step]), step=0)
    assert batch.coefficients.dtype == torch.float32
    by_row = [batch.coefficients[batch.positions // 6 == row] for row in (0, 1)]
    for coefficients in by_row:
        assert torch.equal(coefficients, torch.full_like(coefficients, 1 / (len(coefficients) * 2)))
    # Σ coefficient · (l / L) · L = 1/N each, whatever l is.
    assert [float(one.sum()) for one in by_row] == pytest.approx([0.5, 0.5])


def test_coefficients_by_token_by_hand() -> None:
    step = local_step([example(2, 4), example(4, 2, line=2)], StepSize(2, 1))
    noise = source(normalization="token")
    (batch,) = noise.micro_batches(step, report([step]), step=0)
    for row, length in ((0, 4), (1, 2)):
        coefficients = batch.coefficients[batch.positions // 6 == row]
        # (L / l) / (4 + 2)
        expected = torch.full_like(coefficients, length / len(coefficients) / 6)
        assert torch.allclose(coefficients, expected)


@pytest.mark.parametrize("normalization", ["answer", "token"])
def test_weights_of_the_data_multiply_the_loss_alone(normalization: str) -> None:
    """With weights 0.5 and 3, L and N are what they are without: tokens, and examples."""
    weights = [np.full(6, 0.5, np.float32), np.full(6, 3, np.float32)]
    plain = [example(2, 4), example(4, 2, line=2)]
    weighted = [replace(one, loss_weights=own) for one, own in zip(plain, weights, strict=True)]
    noise = source(normalization=normalization)
    batches = []
    for examples in (plain, weighted):
        step = local_step(examples, StepSize(2, 1))
        (batch,) = noise.micro_batches(step, report([step]), step=0)
        batches.append(batch)
    without, with_weights = batches
    assert torch.equal(without.positions, with_weights.positions)
    factors = torch.where(without.positions < 6, 0.5, 3.0)
    torch.testing.assert_close(with_weights.coefficients, without.coefficients * factors)
    # Both answers of one example, as data.multi_turn: all has them.
    mixed = replace(plain[0], loss_weights=np.array([0, 0, 1, 1, 4, 4], np.float32))
    step = local_step([mixed, plain[1]], StepSize(2, 1))
    (batch,) = noise.micro_batches(step, report([step]), step=0)
    factors = torch.where(torch.isin(without.positions, torch.tensor([4, 5])), 4.0, 1.0)
    torch.testing.assert_close(batch.coefficients, without.coefficients * factors)


def test_masked_positions_targets_and_input() -> None:
    clean = example(3, 5)
    step = local_step([clean], StepSize(1, 1))
    (batch,) = source().micro_batches(step, report([step]), step=0)
    ids = torch.from_numpy(clean.input_ids)
    assert torch.equal(batch.targets, ids[batch.positions])
    assert bool((batch.positions >= 3).all())
    assert bool((batch.noisy_ids[0, batch.positions] == MASK).all())
    untouched = torch.ones(8, dtype=torch.bool)
    untouched[batch.positions] = False
    assert torch.equal(batch.noisy_ids[0, untouched], ids[untouched])


def test_a_text_may_contain_the_mask_token() -> None:
    """Masked positions are booleans; the id in the text is a token like others."""
    record = example(2, 3)
    record.input_ids[:] = MASK
    step = local_step([record], StepSize(1, 1))
    counted = [
        len(source(seed=seed).micro_batches(step, report([step]), 0)[0].positions)
        for seed in range(20)
    ]
    assert set(counted) == {1, 2, 3}


def clean_loss(steps: Sequence[LocalStep], sources: Sequence[NoiseSource], at: int) -> Tensor:
    """`diffusion_loss` on the whole global batch at once, with the same noise."""
    counts = report(steps)
    longest = max(b.input_ids.shape[1] for step in steps for b in step.micro_batches)
    rows = []
    for step, noise in zip(steps, sources, strict=True):
        drawn = noise.micro_batches(step, counts, at)
        for batch, made in zip(step.micro_batches, drawn, strict=True):
            flat = torch.zeros(made.noisy_ids.numel(), dtype=torch.bool)
            flat[made.positions] = True
            masked = flat.view(made.noisy_ids.shape)
            for row in range(len(batch.keys)):
                rows.append((batch, row, masked[row], made.noisy_ids[row]))
    ids = torch.full((len(rows), longest), EOS)
    noisy, where = ids.clone(), torch.zeros(len(rows), longest, dtype=torch.bool)
    lengths, weights = torch.ones(len(rows), 1), torch.ones(len(rows), 1)
    for number, (batch, row, masked, noisy_row) in enumerate(rows):
        used = len(masked)
        ids[number, :used] = torch.from_numpy(batch.input_ids[row])
        noisy[number, :used], where[number, :used] = noisy_row, masked
        lengths[number] = int(batch.response_mask[row].sum())
        if not batch.corrupted or not batch.corrupted[row]:
            weights[number] = lengths[number] / masked.sum()
    by_token = sources[0].objective.normalization == "token"
    return diffusion_loss(
        TABLE[noisy],
        ids,
        where,
        weights,
        1 if by_token else lengths,
        counts.response_tokens if by_token else counts.examples,
    )


def mean_of_ranks(steps: Sequence[LocalStep], sources: Sequence[NoiseSource], at: int) -> Tensor:
    """What DeepSpeed makes of it: micro-batches summed, ranks averaged."""
    counts = report(steps)
    total = torch.zeros(())
    for step, noise in zip(steps, sources, strict=True):
        for batch in noise.micro_batches(step, counts, at):
            total += masked_cross_entropy(
                logits_at(batch, TABLE), batch.targets, batch.coefficients
            )
    return total / len(steps)


LENGTHS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60)), max_size=4)


@given(
    ranks=st.lists(LENGTHS, min_size=1, max_size=3).filter(any),
    normalization=st.sampled_from(["answer", "token"]),
    grows=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_ranks_together_have_the_loss_of_the_global_batch(
    ranks: list[list[tuple[int, int]]], normalization: str, grows: bool, seed: int
) -> None:
    steps, sources = [], []
    for rank, lengths in enumerate(ranks):
        examples = [
            example(prompt, response, line, f"file{rank}", grows)
            for line, (prompt, response) in enumerate(lengths)
        ]
        steps.append(local_step(examples, StepSize(2, 2)))
        sources.append(source(rank, len(ranks), seed, normalization=normalization))
    torch.testing.assert_close(
        mean_of_ranks(steps, sources, at=7), clean_loss(steps, sources, at=7)
    )


def test_noisy_ids_have_weight_one_at_the_response() -> None:
    corrupted = example(2, 4, noisy_ids=np.array([1, 2, 3, 4, 5, 6]))
    step = local_step([corrupted, example(0, 3, line=2)], StepSize(2, 1))
    (batch,) = source().micro_batches(step, report([step]), step=0)
    own = batch.positions < 6
    assert batch.positions[own].tolist() == [2, 3, 4, 5]
    assert batch.noisy_ids[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.targets[own].tolist() == corrupted.input_ids[2:].tolist()
    assert torch.allclose(batch.coefficients[own], torch.tensor(1 / 4 / 2))
    torch.testing.assert_close(
        mean_of_ranks([step], [source()], at=0), clean_loss([step], [source()], at=0)
    )


def test_an_empty_micro_batch_has_one_position_that_counts_for_nothing() -> None:
    step = local_step([], StepSize(2, 2))
    batches = source().micro_batches(step, Report(examples=3, response_tokens=9), step=0)
    assert len(batches) == 2
    for batch in batches:
        assert batch.noisy_ids.tolist() == [[EOS]]
        assert (batch.positions.tolist(), batch.targets.tolist()) == ([0], [EOS])
        assert batch.coefficients.tolist() == [0.0]
        assert batch.real is not None and batch.real.tolist() == [False]


@pytest.mark.parametrize("grows", [False, True])
def test_tokens_that_were_added_are_not_real(grows: bool) -> None:
    """Also where they are learned: the counts of tokens that ranks agree on are without them."""
    step = local_step([example(1, 4), example(2, 1, line=2, grows=grows)], StepSize(2, 1))
    (batch,) = source().micro_batches(step, report([step]), step=0)
    assert batch.real is not None
    assert batch.real.tolist() == [True] * 5 + [True] * 3 + [False] * 2
    assert int(batch.real.sum()) == step.num_tokens
    even = local_step([example(1, 4), example(2, 3, line=2)], StepSize(2, 1))
    (batch,) = source().micro_batches(even, report([even]), step=0)
    assert batch.real is None


def test_bernoulli_that_masks_nothing_counts_for_nothing() -> None:
    step = local_step([example(1, 1)], StepSize(1, 1))
    found = [
        source(seed=seed, masking="bernoulli").micro_batches(step, report([step]), 0)[0]
        for seed in range(30)
    ]
    nothing = [batch for batch in found if not (batch.noisy_ids == MASK).any()]
    assert 0 < len(nothing) < 30
    for batch in nothing:
        assert batch.positions.tolist() == [0]
        assert batch.coefficients.tolist() == [0.0]
        assert batch.targets.tolist() == [int(batch.noisy_ids[0, 0])]


@pytest.mark.parametrize(("world_size", "counts"), [(1, [5]), (3, [4, 4, 4]), (2, [3, 2])])
def test_the_indices_of_all_ranks_are_those_of_the_global_batch(
    monkeypatch: pytest.MonkeyPatch, world_size: int, counts: list[int]
) -> None:
    seen: list[int] = []
    shifts = set()

    def low_discrepancy(shift: float, index: int) -> float:
        seen.append(index)
        shifts.add(shift)
        return 0.5

    monkeypatch.setattr(noising, "low_discrepancy", low_discrepancy)
    steps = [
        local_step([example(1, 3, line) for line in range(count)], StepSize(2, 3))
        for count in counts
    ]
    for rank, step in enumerate(steps):
        source(rank, world_size).micro_batches(step, report(steps), step=11)
    assert sorted(seen) == list(range(sum(counts)))
    assert len(shifts) == 1


def positions(noise: NoiseSource, one: Example, epoch: int = 0, step: int = 0) -> list[int]:
    local = local_step([replace(one, epoch=epoch)], StepSize(1, 1), epoch)
    (batch,) = noise.micro_batches(local, report([local]), step)
    found: list[int] = batch.positions.tolist()
    return found


@pytest.mark.parametrize("t_sampling", ["low_discrepancy", "independent"])
@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
def test_noise_is_keyed(t_sampling: str, masking: str) -> None:
    def noise(seed: int = 0) -> NoiseSource:
        return source(seed=seed, t_sampling=t_sampling, masking=masking)

    def one(line: int = 1, file: str = "a", part: int = 0) -> Example:
        return example(0, 400, line, file, part=part)

    torch.manual_seed(0)
    first = positions(noise(), one())
    torch.manual_seed(1)
    assert positions(noise(), one()) == first
    others = [
        positions(noise(seed=1), one()),
        positions(noise(), one(), epoch=1),
        positions(noise(), one(line=2)),
        positions(noise(), one(file="b")),
        positions(noise(), one(part=1)),
    ]
    assert len({tuple(found) for found in [first, *others]}) == 6


def test_an_independent_level_does_not_depend_on_the_place_in_the_batch() -> None:
    one = example(0, 400)
    at_rank = [
        positions(source(rank, 4, t_sampling="independent"), one, step=rank) for rank in range(4)
    ]
    assert all(found == at_rank[0] for found in at_rank)


def test_lightning_and_deepspeed_leave_the_coefficients_in_fp32() -> None:
    step = local_step([example(2, 4)], StepSize(1, 1))
    micro_batches = source().micro_batches(step, report([step]), step=0)
    batch = StepBatch(micro_batches, report([step]), 0, {})

    def to_bf16(tensor: Tensor) -> Tensor:
        return tensor.bfloat16()

    # Its way through collections is real: a plain list of tensors is converted.
    assert apply_to_collection([torch.ones(1)], Tensor, to_bf16)[0].dtype == torch.bfloat16
    for item in (batch, micro_batches[0]):
        assert apply_to_collection(item, Tensor, to_bf16) is item
    assert convert_tensors_to_scalars(batch) is batch
    # DeepSpeed's walkers, too: around modules, and where it casts what a module is given.
    assert apply_to_tensors_only(to_bf16, [torch.ones(1)])[0].dtype == torch.bfloat16
    engine = DeepSpeedEngine.__new__(DeepSpeedEngine)
    assert engine._cast_inputs_half([torch.ones(1)])[0].dtype == torch.float16
    for item in (batch, micro_batches[0]):
        assert apply_to_tensors_only(to_bf16, item) is item
        assert engine._cast_inputs_half(item) is item
    moved = move_data_to_device(batch, torch.device("cpu"))
    assert isinstance(moved, StepBatch)
    assert moved.micro_batches[0].coefficients.dtype == torch.float32
    assert (moved.counts, moved.epoch, moved.positions) == (batch.counts, 0, {})


def test_moving_a_micro_batch_moves_all_of_it() -> None:
    step = local_step([example(2, 4), example(1, 2, line=2)], StepSize(2, 1))
    (batch,) = source().micro_batches(step, report([step]), step=0)
    assert batch.attention_mask is not None
    moved = vars(batch.to(torch.device("meta")))
    assert moved.pop("sequences") is None
    assert moved.pop("rows") == (("a", 1), ("a", 2))
    terms = vars(moved.pop("terms"))
    assert [terms[name].device.type for name in ("coefficients", "rows")] == ["meta"] * 2
    # Where the losses belong to is known on the host.
    assert moved.pop("levels") is batch.levels
    # Without blocks there are none.
    assert (moved.pop("blocks"), moved.pop("replaced")) == (None, None)
    assert moved.pop("is_masked") is True
    tensors = [value for value in moved.values() if isinstance(value, Tensor)]
    assert len(tensors) == len(moved) == 6
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_moving_moves_what_else_the_loss_takes() -> None:
    step = local_step([example(2, 4), example(1, 2, line=2)], StepSize(2, 1))
    (batch,) = source(confidence_weight=1.0).micro_batches(step, report([step]), step=0)
    terms = batch.to(torch.device("meta")).terms
    assert terms is not None and terms.confidence is not None
    moved = (terms.coefficients, terms.rows, terms.confidence)
    assert {tensor.device.type for tensor in moved} == {"meta"}
