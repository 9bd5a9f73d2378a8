"""Each example twice: what is counted twice, what once, and that the mean of twins is the loss."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.steps.collate import UnmaskedBatch, pack, pad
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.diffusion.objective import masked_cross_entropy
from llada_sft.training.consensus import Report
from llada_sft.training.feed import StepFeed
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.masks.twins import each_twice
from llada_sft.training.noising import NoiseSource
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import (
    EOS,
    MASK,
    TABLE,
    example,
    local_step,
    local_steps,
    logits_at,
    report,
    source,
)


def step_of(batch: UnmaskedBatch) -> LocalStep:
    return LocalStep((batch,), 0, {})


def drawn(batch: UnmaskedBatch, **objective: Any) -> MicroBatch:
    step = step_of(batch)
    (made,) = source(**objective).micro_batches(step, report([step]), step=3)
    return made


def loss(batch: MicroBatch) -> float:
    logits = logits_at(batch, TABLE)
    return masked_cross_entropy(logits, batch.targets, batch.coefficients).item()


def test_rows_and_packed_examples_are_laid_out_one_after_the_other() -> None:
    first, second = example(1, 2), example(2, 3, line=2)
    padded = each_twice(pad([first, second], EOS))
    assert padded.input_ids.shape == (4, 5)
    for row, one in enumerate((first, first, second, second)):
        used = len(one.input_ids)
        assert padded.input_ids[row, :used].tolist() == one.input_ids.tolist()
        assert padded.response_mask[row, :used].tolist() == one.response_mask.tolist()
        assert padded.attention_mask is not None
        assert padded.attention_mask[row].sum() == used
    packed = each_twice(pack([first, second]))
    expected = [*first.input_ids, *first.input_ids, *second.input_ids, *second.input_ids]
    assert packed.input_ids.tolist() == [expected]
    assert packed.lengths == (3, 3, 5, 5)
    assert [key.line for key in packed.keys] == [1, 1, 2, 2]


def test_weights_and_inputs_of_the_hook_come_twice() -> None:
    weights = np.array([0, 2, 3], np.float32)
    batch = each_twice(
        pad([example(1, 2, noisy_ids=np.array([5, 6, 7]), loss_weights=weights)], EOS)
    )
    assert batch.corrupted == (True, True)
    assert batch.noisy_ids is not None and batch.loss_weights is not None
    assert batch.noisy_ids.tolist() == [[5, 6, 7]] * 2
    assert batch.loss_weights.tolist() == [[0, 2, 3]] * 2


@pytest.mark.parametrize("together", [lambda rows: pad(rows, EOS), pack])
@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
def test_the_first_twin_is_the_draw_without_pairs(together: Any, masking: str) -> None:
    rows = [example(2, 9), example(0, 5, line=2), example(3, 7, line=3)]
    alone = drawn(together(rows), masking=masking)
    twins = drawn(together(rows), masking=masking, pairs="antithetic")
    plain = together(rows)
    double = each_twice(plain)
    for number, span in enumerate(plain.spans):
        first, second = (double.spans[2 * number + place] for place in (0, 1))
        ids = [batch.noisy_ids.flatten()[part].tolist() for batch, part in
               ((alone, span), (twins, first), (twins, second))]  # fmt: skip
        assert ids[0] == ids[1]
        learned = torch.from_numpy(plain.response_mask).flatten()[span].tolist()
        masked = [[one == MASK for one in of_row] for of_row in ids]
        assert [a or b for a, b in zip(masked[0], masked[2], strict=True)] == learned
    # The first twin counts half of what it counts alone.
    own = dict(zip(alone.positions.tolist(), alone.coefficients.tolist(), strict=True))
    halves = dict(zip(twins.positions.tolist(), twins.coefficients.tolist(), strict=True))
    for span, first in zip(plain.spans, double.spans[::2], strict=True):
        moved = first.start - span.start
        for at in range(span.start, span.stop):
            assert halves.get(at + moved, 0.0) == pytest.approx(own.get(at, 0.0) / 2)


def test_the_loss_is_the_mean_of_the_twins_in_any_arrangement() -> None:
    rows = [example(2, 9), example(0, 5, line=2), example(3, 7, line=3)]
    losses = [
        loss(drawn(together, pairs="antithetic", t_sampling="independent"))
        for together in (pad(rows, EOS), pack(rows), pack(rows[::-1]))
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("normalization", ["answer", "token"])
def test_twins_of_the_same_mask_have_the_loss_of_one(
    monkeypatch: pytest.MonkeyPatch, normalization: str
) -> None:
    """N and the lengths count each example once: with the same mask twice, nothing changes."""
    from llada_sft.training.masks import parts

    def same(*arguments: Any) -> tuple[Any, Any]:
        noise = parts.draw_noise(*arguments)
        return noise, noise

    monkeypatch.setattr(parts, "draw_twins", same)
    rows = pad([example(2, 9), example(0, 5, line=2)], EOS)
    twins = drawn(rows, pairs="antithetic", normalization=normalization)
    assert loss(twins) == pytest.approx(loss(drawn(rows, normalization=normalization)), rel=1e-6)


def test_rows_are_named_once() -> None:
    """As `train.on_nonfinite` and the journal name them."""
    batch = drawn(pad([example(1, 2), example(1, 2, line=7)], EOS), pairs="antithetic")
    assert batch.rows == (("a", 1), ("a", 7))


def test_a_micro_batch_without_examples_counts_for_nothing() -> None:
    step = local_step([], StepSize(1, 1))
    noise = source(pairs="antithetic", confidence_weight=1.0)
    (batch,) = noise.micro_batches(step, Report(examples=3, response_tokens=9), step=0)
    assert batch.noisy_ids.tolist() == [[EOS], [EOS]]
    assert batch.coefficients.tolist() == [0.0]
    assert batch.terms is not None and batch.terms.confidence is not None
    assert batch.terms.confidence.tolist() == [0.0]


@given(
    ranks=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=3).filter(any),
    masking=st.sampled_from(["exact", "bernoulli"]),
)
@settings(max_examples=20, deadline=None)
def test_ranks_together_have_the_loss_of_one_rank(ranks: list[list[int]], masking: str) -> None:
    """Levels are independent here, so that they do not depend on who has an example."""
    objective = {"pairs": "antithetic", "t_sampling": "independent", "masking": masking}
    rows = [
        [example(1, length, line, f"f{rank}") for line, length in enumerate(lengths)]
        for rank, lengths in enumerate(ranks)
    ]
    size = StepSize(2, 2)
    steps = [local_step(of_rank, size) for of_rank in rows]
    counts = report(steps)
    total = 0.0
    for rank, step in enumerate(steps):
        noise = source(rank, len(ranks), **objective)
        total += sum(loss(batch) for batch in noise.micro_batches(step, counts, 0))
    whole = pad([one for of_rank in rows for one in of_rank], EOS)
    (batch,) = source(**objective).micro_batches(step_of(whole), counts, 0)
    assert total / len(ranks) == pytest.approx(loss(batch), rel=1e-5)


def test_the_counts_of_a_step() -> None:
    """An example counts once; its tokens, which the network runs on, twice."""

    def counts(objective: dict[str, Any]) -> list[Report]:
        def work(rank: int, consensus: Any) -> list[Report]:
            noise: NoiseSource = source(rank, 2, **objective)
            steps = local_steps(rank, [5 - rank], StepSize(2, 1))
            return [batch.counts for batch in StepFeed(steps, noise, consensus, lambda: False, 0)]

        first, second = on_ranks(2, work)
        assert first == second
        return first  # type: ignore[no-any-return]

    plain, twins = counts({}), counts({"pairs": "antithetic"})
    assert len(plain) == len(twins) == 3
    for one, two in zip(plain, twins, strict=True):
        assert (one.examples, one.response_tokens) == (two.examples, two.response_tokens)
        for name in ("tokens", "all_tokens", "squares", "work", "most_work"):
            assert getattr(two, name) == 2 * getattr(one, name) > 0
