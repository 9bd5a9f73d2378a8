"""Levels by their losses: the same on all ranks, and after a resume the same again."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.steps.collate import pad
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.diffusion.levels import NUM_BINS, LevelStatistics, bin_of, level_sums
from llada_sft.training.consensus import Consensus, Report
from llada_sft.training.feed import StepFeed
from llada_sft.training.masks.level_losses import NO_SUMS, BatchLevels, LevelLosses, LevelState
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import NoiseSource, StepBatch
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import EOS, MASK, TABLE, example, local_step, logits_at, report

SIZE = StepSize(4, 2)
STEPS = 9


def noise_of(levels: LevelLosses | None, rank: int = 0, world_size: int = 1, **more: Any) -> Any:
    objective = ObjectiveConfig(t_density="importance", **more)
    return NoiseSource(objective, 0, MASK, rank, world_size, levels)


def losses_at(batch: MicroBatch) -> torch.Tensor:
    """The cross-entropy at each masked position, as the head gives it."""
    return torch.nn.functional.cross_entropy(
        logits_at(batch, TABLE), batch.targets, reduction="none"
    )


def steps_of(rank: int, world_size: int, first: int = 0) -> list[LocalStep]:
    """The same rows in each global step, whatever the number of ranks."""
    per_rank = SIZE.examples // world_size
    size = StepSize(SIZE.micro_batch_size // world_size, SIZE.accumulate_grad_batches)
    steps = []
    for step in range(first, STEPS):
        rows = [example(1, 2 + (line + step) % 7, 10 * step + line) for line in range(8)]
        steps.append(local_step(rows[rank::world_size][:per_rank], size))
    return [*steps, local_step([], size, end=True)]


class Run:
    """Trains on one rank as the training does: a step is fetched while another waits."""

    def __init__(
        self, rank: int, consensus: Consensus, world_size: int, first: int, state: LevelState
    ) -> None:
        self.levels = LevelLosses(first, state, rank)
        self.drawn: list[list[tuple[float, ...]]] = []
        self.states: list[LevelState] = []
        noise = noise_of(self.levels, rank, world_size, t_sampling="independent")
        feed = iter(
            StepFeed(steps_of(rank, world_size, first), noise, consensus, lambda: False, first)
        )
        waiting = next(feed, None)
        step = first
        while (batch := waiting) is not None:
            waiting = next(feed, None)
            self._train(batch, step)
            step += 1
            assert batch.drawn_with is not None
            self.states.append(self.levels.state(batch.drawn_with, step))

    def _train(self, batch: StepBatch, step: int) -> None:
        for micro in batch.micro_batches:
            assert micro.levels is not None
            self.levels.add(micro.levels, losses_at(micro))
            self.drawn.append([micro.levels.levels, tuple(micro.coefficients.tolist())])
        self.levels.step_ended(step)


def run(world_size: int, first: int = 0, state: LevelState | None = None) -> list[Run]:
    done = on_ranks(
        world_size,
        lambda rank, consensus: Run(rank, consensus, world_size, first, state or LevelState()),
    )
    for each in done:
        if isinstance(each, Exception):
            raise each
    return done


def saved(runs: Sequence[Run], step: int) -> LevelState:
    """What a checkpoint after `step` steps gives back, through JSON."""
    together = LevelState.together([each.states[step - 1] for each in runs])
    assert together is not None
    return LevelState.from_json(json.loads(json.dumps(together.to_json())))


@pytest.mark.parametrize("world_size", [1, 2])
def test_levels_follow_the_losses_and_are_the_same_on_all_ranks(world_size: int) -> None:
    runs = run(world_size)
    known = [each.levels.statistics for each in runs]
    assert all(one == known[0] for one in known)
    heights = known[0].density().heights
    assert max(heights) > 1.05 * min(heights)
    # The first two steps are uniform: nothing is known yet.
    first_two = [state.statistics for state in runs[0].states[:2]]
    assert first_two == [LevelStatistics()] * 2
    assert runs[0].states[2].statistics != LevelStatistics()


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_a_resumed_run_draws_the_same_levels(stop: int) -> None:
    whole = run(2)
    resumed = run(2, stop, saved(whole, stop))
    per_step = SIZE.accumulate_grad_batches
    for rank in (0, 1):
        assert resumed[rank].drawn == whole[rank].drawn[per_step * stop :]
        assert resumed[rank].states[-1].statistics == whole[rank].states[-1].statistics


def test_another_number_of_ranks_continues_with_the_same_statistics() -> None:
    """Sums of integers, whoever had the examples: here not even the last bit differs."""
    two, one = run(2), run(1)
    assert one[0].levels.statistics == two[0].levels.statistics
    resumed = run(1, 4, saved(two, 4))
    assert resumed[0].levels.statistics == two[0].levels.statistics


def test_the_loss_that_counts_is_what_an_example_adds_to_the_uniform_loss() -> None:
    """By hand: two examples, one of them with importance; and a weight of the data."""
    rows = [example(0, 4), example(1, 2, line=2)]
    step = LocalStep((pad(rows, EOS),), 0, {})
    skewed = LevelStatistics().after_step(level_sums([(0.1, 3.0), (0.9, 1.0)] * 200))
    levels = LevelLosses(0, LevelState(skewed), rank=0)
    counts = Report(examples=2, response_tokens=6, by_level=NO_SUMS)
    (batch,) = noise_of(levels).micro_batches(step, counts, 0)
    assert batch.levels is not None
    ones = np.ones(len(batch.positions), np.float32)
    sums = batch.levels.sums(ones)
    # Each masked token has cross-entropy 1: weight L/l · l / L = 1 for each example.
    expected = [0] * NUM_BINS
    for level in batch.levels.levels:
        expected[bin_of(level)] += 1
    assert list(sums[:NUM_BINS]) == expected
    assert [value / 2**20 for value in sums[NUM_BINS:]] == pytest.approx(expected, rel=1e-4)
    # The coefficients themselves have it.
    of_rows = [float(batch.coefficients[batch.positions // 4 == row].sum()) for row in (0, 1)]
    density = skewed.after_step(NO_SUMS).density()
    lengths = (4, 2)
    for level, length, total in zip(batch.levels.levels, lengths, of_rows, strict=True):
        masked = 1 + math.floor(level * length)
        chance = density.chance((masked - 1) / length, masked / length)
        assert total == pytest.approx(1 / (length * chance) / 2, rel=1e-5)


def test_twins_are_one_example_of_one_level() -> None:
    rows = [example(0, 4), example(1, 5, line=2)]
    step = LocalStep((pad(rows, EOS),), 0, {})
    noise = noise_of(LevelLosses(0, LevelState(), 0), pairs="antithetic")
    (batch,) = noise.micro_batches(step, Report(2, 9, by_level=NO_SUMS), 0)
    assert batch.levels is not None and len(batch.levels.levels) == 2
    sums = batch.levels.sums(np.ones(len(batch.positions), np.float32))
    assert sum(sums[:NUM_BINS]) == 2
    assert sum(sums[NUM_BINS:]) / 2**20 == pytest.approx(2, rel=1e-4)


def test_what_the_hook_has_corrupted_has_no_level() -> None:
    rows = [example(0, 4, noisy_ids=np.array([1, 2, 3, 4])), example(1, 3, line=2)]
    step = LocalStep((pad(rows, EOS),), 0, {})
    levels = LevelLosses(0, LevelState(), 0)
    (batch,) = noise_of(levels).micro_batches(step, Report(2, 7, by_level=NO_SUMS), 0)
    assert batch.levels is not None
    assert sum(batch.levels.sums(np.ones(len(batch.positions), np.float32))[:NUM_BINS]) == 1


def test_empty_micro_batches_and_losses_that_are_not_finite_say_nothing() -> None:
    empty = local_step([], SIZE)
    levels = LevelLosses(0, LevelState(), 0)
    batches = noise_of(levels).micro_batches(empty, Report(3, 9, by_level=NO_SUMS), 0)
    for batch in batches:
        assert batch.levels is not None
        levels.add(batch.levels, torch.zeros(1))
    first = np.zeros(1, np.int64)
    bad = BatchLevels(first, np.ones(1), [0.5], [1.0], rows=first, shares=[0.5])
    levels.add(bad, torch.tensor([math.nan]))
    levels.step_ended(0)
    assert levels.report(2) == NO_SUMS


def test_a_checkpoint_without_levels_starts_with_nothing_known() -> None:
    assert LevelState.from_json(None) == LevelState()
    assert LevelState.together([None, None]) is None


def test_the_confidence_loss_is_a_mean_over_examples() -> None:
    """Weight λ: each of N examples has λ/N, with twins each row half; importance counts as well."""
    rows = [example(0, 4), example(1, 2, line=2)]
    step = LocalStep((pad(rows, EOS),), 0, {})
    for pairs, draws in (("none", 1), ("antithetic", 2)):
        objective = ObjectiveConfig(confidence_weight=2.0, pairs=pairs)  # type: ignore[arg-type]
        (batch,) = NoiseSource(objective, 0, MASK, 1, 3).micro_batches(step, report([step]), 0)
        assert batch.terms is not None and batch.terms.confidence is not None
        # Three ranks: DeepSpeed averages.
        expected = torch.full_like(batch.terms.confidence, 3 * 2.0 / 2 / draws)
        torch.testing.assert_close(batch.terms.confidence, expected)
        assert set(batch.terms.rows.tolist()) == set(range(2 * draws))
        assert torch.equal(batch.terms.rows, batch.positions // 4)
