"""EOS and void tokens that are always masked: the positions, the formula, what it estimates."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import UnmaskedBatch, pack, pad
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.diffusion.noise import Noise
from llada_sft.diffusion.objective import confidence_loss, masked_cross_entropy
from llada_sft.training.consensus import Report
from llada_sft.training.masks.level_losses import LevelLosses, LevelState
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.masks.noisy_batch import noisy_micro_batch
from llada_sft.training.masks.void_end import answer_masks
from llada_sft.training.noising import NoiseSource
from tests.unit.diffusion.enumeration import ANSWER, MASKS, mask_index
from tests.unit.training.steps import (
    EOS,
    MASK,
    TABLE,
    VOCAB,
    example,
    local_step,
    logits_at,
    report,
    source,
)

VOID = 7


def with_end(prompt: int, answer: int, void: int, line: int = 1, **more: Any) -> Example:
    """An answer of ids below 7, then EOS and void tokens."""
    plain = example(prompt, answer, line, **more)
    end = [EOS, *[VOID] * void]
    return replace(
        plain,
        input_ids=np.concatenate([plain.input_ids % 7, end]),
        response_mask=np.concatenate([plain.response_mask, [True], [False] * void]),
        tail=1,
        hidden=1 + void,
    )


def drawn(batch: UnmaskedBatch, **objective: Any) -> MicroBatch:
    step = LocalStep((batch,), 0, {})
    (made,) = source(**objective).micro_batches(step, report([step]), step=3)
    return made


def at(batch: MicroBatch, places: Sequence[int]) -> Tensor:
    """The coefficients at flat indices, which are masked."""
    own = dict(zip(batch.positions.tolist(), batch.coefficients.tolist(), strict=True))
    return torch.tensor([own[place] for place in places])


def _without_end(row: Example) -> dict[str, Any]:
    size = len(row.input_ids) - row.hidden
    return {"input_ids": row.input_ids[:size], "response_mask": row.response_mask[:size]}


@pytest.mark.parametrize("pairs", ["none", "antithetic"])
@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
def test_the_noise_is_drawn_over_the_answer_alone(masking: str, pairs: str) -> None:
    rows = [with_end(2, 5, 3), with_end(1, 4, 0, line=2), example(2, 6, line=3)]
    rows[2] = replace(rows[2], input_ids=rows[2].input_ids % 7)
    plain = [replace(row, hidden=0, **_without_end(row)) for row in rows]
    objective = {"masking": masking, "pairs": pairs}
    made, without = drawn(pack(rows), **objective), drawn(pack(plain), **objective)
    draws = 2 if pairs == "antithetic" else 1
    start = plain_start = 0
    for row, bare in zip(rows, plain, strict=True):
        for _ in range(draws):
            own = made.noisy_ids[0, start : start + len(row.input_ids)]
            other = without.noisy_ids[0, plain_start : plain_start + len(bare.input_ids)]
            # The same tokens of the answer are masked as if it had no end.
            size = len(bare.input_ids)
            assert ((own[:size] == MASK) == (other == MASK)).all()
            assert (own[size:] == MASK).all()
            start += len(row.input_ids)
            plain_start += size
    targets = dict(zip(made.positions.tolist(), made.targets.tolist(), strict=True))
    assert [targets[place] for place in (7, 8, 9, 10)] == [EOS, VOID, VOID, VOID]


def test_the_counts_are_those_of_answers_with_one_eos() -> None:
    """Void tokens are tokens that the network runs on, and not of the response."""
    step = local_step([with_end(2, 5, 3), with_end(1, 4, 0, line=2)], StepSize(2, 1))
    assert (step.num_examples, step.num_response_tokens) == (2, 6 + 5)
    assert step.num_tokens == 11 + 6
    (batch,) = source().micro_batches(step, report([step]), step=0)
    assert batch.real is not None and int(batch.real.sum()) == 17
    masks = answer_masks(step.micro_batches[0])
    assert [int(mask.sum()) for mask in masks] == [5, 4]


@pytest.mark.parametrize("normalization", ["answer", "token"])
def test_coefficients_by_hand(normalization: str) -> None:
    rows = [with_end(2, 5, 3), with_end(1, 4, 0, line=2), with_end(0, 2, 1, line=3)]
    made = drawn(pack(rows), normalization=normalization, void_weight=0.5)
    # Response tokens: 6, 5 and 3.
    shares = [1 / 3 / length if normalization == "answer" else 1 / 14 for length in (6, 5, 3)]
    assert at(made, [7, 16, 19]).tolist() == pytest.approx(shares)
    assert at(made, [8, 9, 10]).tolist() == pytest.approx([0.5 * 6 * shares[0] / 3] * 3)
    assert at(made, [20]).tolist() == pytest.approx([0.5 * 3 * shares[2]])
    # An answer of 5 of which l are masked: 5 / l each.
    own = made.coefficients[made.positions < 7]
    assert own.tolist() == pytest.approx([5 / len(own) * shares[0]] * len(own))
    none = drawn(pack(rows), normalization=normalization, void_weight=0.0)
    assert at(none, [8, 9, 10, 20]).tolist() == [0.0] * 4


def test_the_end_weighs_as_the_last_token_of_the_answer() -> None:
    weights = np.array([1, 1, 1, 4, 4, 4, 4], np.float32)
    row = with_end(1, 3, 2)
    plain = drawn(pack([row]))
    weighted = drawn(pack([replace(row, loss_weights=weights)]))
    torch.testing.assert_close(at(weighted, [4, 5, 6]), 4 * at(plain, [4, 5, 6]))


def losses_of_masks() -> tuple[Tensor, Tensor]:
    """Of each of the 64 masks of an answer: the losses [64, 6] of its tokens, and [64] of EOS."""
    generator = torch.Generator().manual_seed(5)
    return (
        3 * torch.rand(len(MASKS), ANSWER, generator=generator, dtype=torch.float64),
        torch.rand(len(MASKS), generator=generator, dtype=torch.float64),
    )


def test_the_first_term_by_enumeration() -> None:
    """It is 1/7 of the bound of the answer given a hidden EOS, and of the mean loss of EOS."""
    of_tokens, of_eos = losses_of_masks()
    batch = pack([with_end(0, ANSWER, 2)])
    expected = 0.0
    for mask in MASKS:
        count = int(mask.sum())
        if count == 0:
            continue
        masked = torch.cat([mask, torch.zeros(3, dtype=torch.bool)])
        noise = Noise(masked, t=count / ANSWER, weight=ANSWER / count)
        made = noisy_micro_batch(batch, [noise], [7.0], MASK)
        losses = torch.cat(
            [of_tokens[mask_index(mask)], of_eos[mask_index(mask), None], *[torch.ones(2)]]
        )
        chance = 1 / ANSWER / math.comb(ANSWER, count)
        expected += chance * float((made.coefficients * losses[made.positions]).sum())
    # The bound as any order of writing has it: the mean over all orders of the tokens' losses.
    orders = list(itertools.permutations(range(ANSWER)))
    bound = 0.0
    for order in orders:
        hidden = torch.ones(ANSWER, dtype=torch.bool)
        for token in order:
            bound += float(of_tokens[mask_index(hidden), token]) / len(orders)
            hidden[token] = False
    level_means = [
        torch.stack([of_eos[mask_index(mask)] for mask in MASKS if mask.sum() == count]).mean()
        for count in range(1, ANSWER + 1)
    ]
    eos = float(torch.stack(level_means).mean())
    assert expected == pytest.approx((bound + eos) / 7, rel=1e-6)
    assert (bound, eos, expected) == pytest.approx((8.9120, 0.5143, 1.3466), abs=1e-4)
    # It is not the bound of answer and EOS together: there, written last, EOS has another loss.
    assert float(of_eos[mask_index(torch.zeros(ANSWER, dtype=torch.bool))]) != pytest.approx(eos)


def test_a_rainbow_has_the_bound_of_the_longer_answer() -> None:
    """EOS and its cycle are tokens of the answer: the draws and coefficients are those of one."""
    plain = example(2, 9)
    rainbow = replace(plain, tail=5)
    one, other = drawn(pack([plain])), drawn(pack([rainbow]))
    for name in ("noisy_ids", "positions", "targets", "coefficients"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@given(
    ranks=st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), max_size=3),
        min_size=1,
        max_size=3,
    ).filter(any),
    objective=st.sampled_from(
        [{}, {"masking": "bernoulli"}, {"pairs": "antithetic"}, {"normalization": "token"}]
    ),
)
@settings(max_examples=20, deadline=None)
def test_ranks_together_have_the_loss_of_one_rank_packed_or_padded(
    ranks: list[list[tuple[int, int]]], objective: dict[str, Any]
) -> None:
    """Levels are independent here, so that they do not depend on who has an example."""
    options = {"t_sampling": "independent", "void_weight": 0.3, **objective}
    rows = [
        [
            with_end(1, answer, void, line, file=f"f{rank}")
            for line, (answer, void) in enumerate(lengths)
        ]
        for rank, lengths in enumerate(ranks)
    ]
    steps = [local_step(of_rank, StepSize(2, 2)) for of_rank in rows]
    counts = report(steps)
    total = 0.0
    for rank, step in enumerate(steps):
        noise = source(rank, len(ranks), **options)
        total += sum(loss(batch) for batch in noise.micro_batches(step, counts, 0))
    whole = pack([one for of_rank in rows for one in of_rank])
    (batch,) = source(**options).micro_batches(LocalStep((whole,), 0, {}), counts, 0)
    assert total / len(ranks) == pytest.approx(loss(batch), rel=1e-5)


def loss(batch: MicroBatch) -> float:
    logits = logits_at(batch, TABLE)
    return masked_cross_entropy(logits, batch.targets, batch.coefficients).item()


def test_void_tokens_do_not_count_for_the_confidence_loss() -> None:
    rows = [with_end(1, 6, 4), with_end(0, 3, 2, line=2)]
    made = drawn(pack(rows), confidence_weight=1.0)
    assert made.terms is not None and made.terms.confidence is not None
    # What is predicted right is certain nowhere: all of it counts.
    logits = torch.zeros(len(made.positions), VOCAB)
    logits[torch.arange(len(made.positions)), made.targets] = 1.0
    entropy = float(torch.distributions.Categorical(logits=2 * logits[0]).entropy())
    found = confidence_loss(logits, made.targets, made.terms.rows, made.terms.confidence)
    assert found.item() == pytest.approx(entropy, rel=1e-5)
    # Of each answer, the mean over its own masked tokens and EOS: void tokens would dilute it.
    wrong = logits.clone()
    wrong[made.targets != VOID] = 0.0
    wrong[made.targets != VOID, MASK] = 1.0
    nothing = confidence_loss(wrong, made.targets, made.terms.rows, made.terms.confidence)
    assert nothing.item() == 0.0


def test_levels_know_the_whole_loss_of_an_example() -> None:
    """EOS and void tokens are divided by the density as the answer is."""
    levels = LevelLosses(0, LevelState(), 0)
    noise = NoiseSource(source(t_density="importance").objective, 0, MASK, 0, 1, levels)
    step = local_step([with_end(1, 6, 4), with_end(0, 3, 2, line=2)], StepSize(2, 1))
    sums = [40] * 16 + [2**20 * place for place in range(16)]
    counts = replace(report([step]), by_level=tuple(sums))
    (made,) = noise.micro_batches(step, counts, 5)
    assert made.levels is not None
    examples = made.levels.examples
    for number, (answer, num_void) in enumerate(((6, 4), (3, 2))):
        own = made.coefficients[examples == number]
        # Σ over the answer (L/l · l), one EOS, and λ (L + 1) for the void tokens.
        importance = float(own.sum()) * 2 * (answer + 1) / (answer + 1 + answer + 1)
        eos = own[len(own) - num_void - 1]
        assert float(eos) == pytest.approx(importance / (answer + 1) / 2, rel=1e-5)
        assert importance != pytest.approx(1.0, abs=1e-3)
        # Undone by the scale: what the example would count with uniform levels.
        assert float(own.sum()) * made.levels.scales[number] == pytest.approx(2.0, rel=1e-5)


def test_padding_is_no_end() -> None:
    rows = [with_end(0, 2, 0), with_end(0, 6, 5, line=2), example(1, 3, line=3)]
    made = drawn(pad(rows, EOS))
    masked = torch.zeros(3 * 12, dtype=torch.bool)
    masked[made.positions] = True
    by_row = masked.view(3, 12)
    assert by_row[0, 2:].tolist() == [True, *[False] * 9]
    assert by_row[1, 6:].all()
    assert not by_row[2, 4:].any()
    assert made.noisy_ids[0, 3:].tolist() == [EOS] * 9


def test_an_empty_micro_batch_has_no_end() -> None:
    step = local_step([], StepSize(1, 1))
    (made,) = source().micro_batches(step, Report(examples=1, response_tokens=3), step=0)
    assert made.coefficients.tolist() == [0.0]
