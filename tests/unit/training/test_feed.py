"""Coefficients over the global batch, noise by key, and epochs that end on all ranks at once."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars, move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from llada_sft.config.schema import ObjectiveConfig
from llada_sft.data.collate import pad
from llada_sft.data.counts import RowCounts
from llada_sft.data.datamodule import LocalStep, StepSize, TokenIds
from llada_sft.data.encode import Example
from llada_sft.data.stream import FilePosition
from llada_sft.diffusion.objective import diffusion_loss, masked_cross_entropy
from llada_sft.errors import DataError, PeerFailedError
from llada_sft.training import feed
from llada_sft.training.callbacks.rows import RowSummary
from llada_sft.training.consensus import Consensus, Report
from llada_sft.training.feed import (
    MicroBatch,
    NoiseSource,
    StepBatch,
    StepFeed,
    validation_micro_batches,
)

EOS, MASK, VOCAB = 9, 8, 10


class Ranks:
    """Stands in for `Consensus`: the ranks are threads, and what they say is summed here."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._said: list[Any] = [None] * world_size
        self.agreements = 0

    def exchange(self, rank: int, item: object) -> list[Any]:
        self._said[rank] = item
        self._barrier.wait()
        said = list(self._said)
        self._barrier.wait()
        return said

    def consensus(self, rank: int) -> Consensus:
        return OneRank(self, rank)


class OneRank(Consensus):
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self._ranks, self._rank = ranks, rank

    def agree(self, report: Report) -> Report:
        said = self._ranks.exchange(self._rank, report.numbers())
        summed = Report.of(sum(column) for column in zip(*said, strict=True))
        if summed.failed and not report.failed:
            raise PeerFailedError(f"{summed.failed} other rank(s) stopped; see their lines")
        if self._rank == 0:
            self._ranks.agreements += 1
        return summed

    def largest(self, number: int) -> int:
        return max(self._ranks.exchange(self._rank, number))

    def gather(self, item: object) -> list[object]:
        return self._ranks.exchange(self._rank, item)


def on_ranks(world_size: int, work: Callable[[int, Consensus], Any]) -> list[Any]:
    """Run `work(rank, consensus)` for each rank; an exception is that rank's result."""
    ranks, results = Ranks(world_size), [None] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank, ranks.consensus(rank))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [
        threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return results


def example(
    prompt: int, response: int, line: int = 1, file: str = "a", grows: bool = False, **more: Any
) -> Example:
    rng = np.random.default_rng(line + 1000 * len(file))
    return Example(
        input_ids=rng.integers(0, VOCAB, prompt + response),
        response_mask=np.arange(prompt + response) >= prompt,
        noisy_ids=more.get("noisy_ids"),
        grows=grows,
        file=file,
        line=line,
        part=more.get("part", 0),
    )


def local_step(
    examples: Sequence[Example], size: StepSize, epoch: int = 0, end: bool = False
) -> LocalStep:
    position = {"a": FilePosition(len(examples), 0)}
    per_batch = size.micro_batch_size
    batches = [pad(examples[i : i + per_batch], EOS) for i in range(0, size.examples, per_batch)]
    return LocalStep(tuple(batches), epoch, position, end)


def report(steps: Iterable[LocalStep]) -> Report:
    counts = [(step.num_examples, step.num_response_tokens) for step in steps]
    return Report(sum(n for n, _ in counts), sum(tokens for _, tokens in counts))


def source(rank: int = 0, world_size: int = 1, seed: int = 0, **objective: Any) -> NoiseSource:
    return NoiseSource(ObjectiveConfig(**objective), seed, MASK, rank, world_size)


def logits_at(batch: MicroBatch, table: Tensor) -> Tensor:
    """A stand-in network [VOCAB, VOCAB]: what it predicts depends on the noisy token alone."""
    return table[batch.noisy_ids.flatten()[batch.positions]]


TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))


# -- coefficients ---------------------------------------------------------------------------------


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
            for row in range(len(batch.examples)):
                rows.append((batch, row, masked[row], made.noisy_ids[row]))
    ids = torch.full((len(rows), longest), EOS)
    noisy, where = ids.clone(), torch.zeros(len(rows), longest, dtype=torch.bool)
    lengths, weights = torch.ones(len(rows), 1), torch.ones(len(rows), 1)
    for number, (batch, row, masked, noisy_row) in enumerate(rows):
        used = len(masked)
        ids[number, :used] = torch.from_numpy(batch.input_ids[row])
        noisy[number, :used], where[number, :used] = noisy_row, masked
        lengths[number] = int(batch.response_mask[row].sum())
        if batch.examples[row].noisy_ids is None:
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


# -- noise ----------------------------------------------------------------------------------------


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

    monkeypatch.setattr(feed, "low_discrepancy", low_discrepancy)
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


# -- steps ----------------------------------------------------------------------------------------


def local_steps(rank: int, epochs: Sequence[int], size: StepSize) -> Iterator[LocalStep]:
    """As many examples in each epoch as `epochs` says."""
    for epoch, count in enumerate(epochs):
        rows = [example(1, 2, line, f"file{rank}") for line in range(count)]
        for start in range(0, count, size.examples):
            yield local_step(rows[start : start + size.examples], size, epoch)
        yield local_step([], size, epoch, end=True)


@given(
    ranks=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=3),
    size=st.builds(StepSize, st.integers(1, 2), st.integers(1, 2)),
)
@settings(max_examples=30, deadline=None)
def test_no_step_is_lost_and_an_epoch_ends_for_all_at_once(
    ranks: list[tuple[int, int]], size: StepSize
) -> None:
    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        steps = local_steps(rank, ranks[rank], size)
        noise = source(rank, len(ranks))
        return list(StepFeed(steps, noise, consensus, lambda: False, first_step=0))

    found = on_ranks(len(ranks), work)
    expected = [max(-(-rank[epoch] // size.examples) for rank in ranks) for epoch in (0, 1)]
    for rank, batches in enumerate(found):
        epochs = [batch.epoch for batch in batches]
        assert epochs == [0] * expected[0] + [1] * expected[1]
        assert all(len(batch.micro_batches) == size.accumulate_grad_batches for batch in batches)
        # This rank's own examples: each has coefficients that sum to (ranks / global examples).
        own = sum(
            float(micro.coefficients.sum()) * batch.counts.examples / len(ranks)
            for batch in batches
            for micro in batch.micro_batches
        )
        assert own == pytest.approx(sum(ranks[rank]))
    assert sum(batch.counts.examples for batch in found[0]) == sum(map(sum, ranks))
    counts = [[batch.counts for batch in batches] for batches in found]
    assert all(one == counts[0] for one in counts)


def test_a_rank_that_waits_keeps_its_position() -> None:
    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        steps = local_steps(rank, [1] if rank == 0 else [3], StepSize(1, 1))
        return list(StepFeed(steps, source(rank, 2), consensus, lambda: False, 0))

    short, long = on_ranks(2, work)
    assert len(short) == len(long) == 3
    assert [float(batch.micro_batches[0].coefficients.sum()) for batch in short] == [1.0, 0.0, 0.0]
    assert [batch.counts.examples for batch in long] == [2, 1, 1]


def test_steps_are_numbered_from_where_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(feed, "step_shift", lambda seed, step: seen.append(step) or 0.5)

    def work(rank: int, consensus: Consensus) -> None:
        steps = local_steps(rank, [3, 2], StepSize(1, 1))
        for _ in StepFeed(steps, source(), consensus, lambda: False, first_step=40):
            pass

    assert on_ranks(1, work) == [None]
    assert seen == [40, 41, 42, 43, 44]


def test_one_rank_that_is_told_to_stop_is_enough() -> None:
    def work(rank: int, consensus: Consensus) -> list[bool]:
        told = {"stop": False}
        steps = local_steps(rank, [4], StepSize(1, 1))
        agreed = StepFeed(steps, source(rank, 2), consensus, lambda: told["stop"], 0)
        states = []
        for number, _ in enumerate(agreed):
            states.append(agreed.stop_agreed)
            told["stop"] = rank == 1 and number == 1
        return states

    assert on_ranks(2, work) == [[False, False, True, True]] * 2


def test_a_rank_that_fails_tells_the_others() -> None:
    def work(rank: int, consensus: Consensus) -> int:
        def failing() -> Iterator[LocalStep]:
            steps = local_steps(rank, [3], StepSize(1, 1))
            yield next(steps)
            if rank == 1:
                raise DataError("a.jsonl:2 (byte 9): bad")
            yield from steps

        return len(list(StepFeed(failing(), source(rank, 3), consensus, lambda: False, 0)))

    found = on_ranks(3, work)
    assert [type(one) for one in found] == [PeerFailedError, DataError, PeerFailedError]
    assert str(found[1]) == "a.jsonl:2 (byte 9): bad"
    assert str(found[0]) == "1 other rank(s) stopped; see their lines"


def test_the_watchdog_is_told_what_comes_next() -> None:
    def work(rank: int, consensus: Consensus) -> list[tuple[str, int]]:
        said: list[tuple[str, int]] = []
        steps = local_steps(rank, [3], StepSize(1, 1))
        told = StepFeed(
            steps,
            source(),
            consensus,
            lambda: False,
            first_step=40,
            pulse=lambda phase, step: said.append((phase, step)),
        )
        assert len(list(told)) == 3
        return said

    # The first step belongs to the start; what is fetched is one step ahead of what is made; the
    # last round finds the end of the epoch.
    rounds = [(phase, step) for step in (40, 41, 42) for phase in ("data", "agreement", "step")]
    assert on_ranks(1, work) == [[*rounds, ("data", 42)]]


# -- rows -----------------------------------------------------------------------------------------


def counting_steps(rank: int, epochs: Sequence[int]) -> Iterator[LocalStep]:
    """Each step has read two rows, one of them bad; at the end of an epoch there is a third."""
    bad = {"not_json": 1} if rank == 0 else {"bad_record": 1}
    for epoch, count in enumerate(epochs):
        for step in local_steps(rank, [count], StepSize(1, 1)):
            read = 3 if step.end_of_epoch else 2
            rows = RowCounts(rows=read, bad=bad, clipped=1, left_out=read - 2)
            done = step.num_examples
            yield replace(step, epoch=epoch, rows=rows, rows_done=done, epoch_rows=10 * (rank + 1))


def test_counts_of_rows_grow_from_step_to_step() -> None:
    """Rank 0 waits, by empty steps, for rank 1: its rows are counted once all the same."""

    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        steps = counting_steps(rank, [1, 1] if rank == 0 else [3, 1])
        return list(StepFeed(steps, source(rank, 2), consensus, lambda: False, 0))

    found, other = on_ranks(2, work)
    counts = [batch.counts for batch in found]
    assert [batch.counts for batch in other] == counts
    # At the end of the first epoch both have read another row: no step holds it, the next one does.
    assert [one.rows for one in counts] == [4, 4 + 3 + 2, 4 + 3 + 2 + 2, 4 + 3 + 4 + 3 + 2 + 2]
    assert [one.bad for one in counts] == [2, 4, 5, 8]
    assert [one.too_long for one in counts] == [2, 4, 5, 8]
    assert [one.left_out for one in counts] == [0, 1, 1, 2]
    assert [one.epoch_rows for one in counts] == [30] * 4
    # A step of one example says that one row is done; an empty one, none.
    assert [one.rows_done for one in counts] == [2, 1, 1, 2]
    assert [one.tokens for one in counts] == [6, 3, 3, 6]
    assert [one.all_tokens for one in counts] == [6, 4, 4, 6]
    rows = RowCounts(rows=5, bad={"not_json": 2}, clipped=2, left_out=1)
    assert [batch.rows.rows for batch in found] == [2, 5, 5, 2]
    assert found[1].rows == found[2].to(torch.device("cpu")).rows == rows


def test_the_feed_says_when_an_epoch_has_ended() -> None:
    def work(rank: int, consensus: Consensus) -> list[tuple[int, int, int]]:
        ended: list[tuple[int, RowCounts]] = []
        seen = []
        steps = counting_steps(rank, [1, 2, 0] if rank == 0 else [3, 1, 0])
        stop = lambda: False  # noqa: E731
        told = StepFeed(
            steps, source(), consensus, stop, 0, epoch_ended=lambda *what: ended.append(what)
        )
        for _ in told:
            seen.append(len(ended))
        assert seen == [0, 0, 0, 1, 1]
        return [(epoch, rows.rows, rows.num_bad) for epoch, rows in ended]

    assert on_ranks(2, work) == [
        [(0, 5, 2), (1, 7, 3), (2, 3, 1)],
        [(0, 9, 4), (1, 5, 2), (2, 3, 1)],
    ]


def test_waiting_is_measured_from_the_second_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"s": 0.0}
    monkeypatch.setattr(feed.time, "monotonic", lambda: now["s"])

    def slow(steps: Iterable[LocalStep]) -> Iterator[LocalStep]:
        for step in steps:
            now["s"] += 0.25
            yield step

    def work(rank: int, consensus: Consensus) -> list[int]:
        waits = []
        for batch in StepFeed(
            slow(local_steps(0, [3], StepSize(1, 1))), source(), consensus, lambda: False, 0
        ):
            waits.append(batch.counts.wait_us)
            # The step itself is no wait.
            now["s"] += 7
        return waits

    assert on_ranks(1, work) == [[0, 250_000, 500_000]]


@pytest.mark.parametrize(
    ("first_step", "epochs", "steps", "lines"),
    [
        (
            0,
            [1, 2],
            3,
            [
                "epoch 1: 10 rows, 4 bad (2 bad_record, 2 not_json: quarantine/), "
                "4 too long (4 clipped), 2 left out by the hook",
                "epoch 2: 14 rows, 6 bad (3 bad_record, 3 not_json: quarantine/), "
                "6 too long (6 clipped), 2 left out by the hook",
            ],
        ),
        (
            0,
            [4],
            2,
            [
                "epoch 1 up to step 2: 8 rows, 4 bad (2 bad_record, 2 not_json: quarantine/), "
                "4 too long (4 clipped)",
            ],
        ),
        (
            40,
            [1, 2],
            2,
            [
                "epoch 1 after step 40: 10 rows, 4 bad (2 bad_record, 2 not_json: quarantine/), "
                "4 too long (4 clipped), 2 left out by the hook",
                "epoch 2 up to step 42: 4 rows, 2 bad (1 bad_record, 1 not_json: quarantine/), "
                "2 too long (2 clipped)",
            ],
        ),
        # Nothing was left to do.
        (40, [], 0, []),
    ],
)
def test_rank_0_says_what_became_of_the_rows(
    capsys: pytest.CaptureFixture[str],
    first_step: int,
    epochs: list[int],
    steps: int,
    lines: list[str],
) -> None:
    def work(rank: int, consensus: Consensus) -> None:
        summary = RowSummary(consensus, rank, first_step)
        trainer: Any = SimpleNamespace(global_step=first_step)
        batches = iter(
            StepFeed(
                counting_steps(rank, epochs),
                source(rank, 2),
                consensus,
                lambda: False,
                first_step,
                epoch_ended=summary.epoch_ended,
            )
        )
        # As Lightning does: the next step is fetched before one is trained.
        coming = next(batches, None)
        for _ in range(steps):
            batch, coming = coming, next(batches, None)
            trainer.global_step += 1
            summary.on_train_batch_end(trainer, trainer, None, batch, 0)
        summary.on_train_end(trainer, trainer)

    assert on_ranks(2, work) == [None, None]
    assert capsys.readouterr().out.splitlines() == lines


# -- validation -----------------------------------------------------------------------------------


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


# -- what lightning does to a batch ---------------------------------------------------------------


def test_lightning_leaves_the_coefficients_in_fp32() -> None:
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
    moved = move_data_to_device(batch, torch.device("cpu"))
    assert isinstance(moved, StepBatch)
    assert moved.micro_batches[0].coefficients.dtype == torch.float32
    assert (moved.counts, moved.epoch, moved.positions) == (batch.counts, 0, {})


def test_moving_a_micro_batch_moves_all_of_it() -> None:
    step = local_step([example(2, 4), example(1, 2, line=2)], StepSize(2, 1))
    (batch,) = source().micro_batches(step, report([step]), step=0)
    assert batch.attention_mask is not None
    moved = vars(batch.to(torch.device("meta")))
    # Numbers of the host: the network plans with them.
    assert moved.pop("sequence_lengths") is None
    assert moved.pop("rows") == (("a", 1), ("a", 2))
    tensors = [value for value in moved.values() if isinstance(value, Tensor)]
    assert len(tensors) == len(moved) == 5
    assert {tensor.device.type for tensor in tensors} == {"meta"}
