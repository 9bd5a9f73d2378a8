"""Steps that all ranks agree on: epochs that end on all at once, and whoever stops or fails."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.rows.position import FilePosition
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.errors import DataError, PeerFailedError
from llada_sft.training import noising
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepFeed
from llada_sft.training.noising import StepBatch
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import example, local_step, local_steps, source


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


def test_what_follows_the_last_step_is_not_read() -> None:
    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        def bad_after(number: int) -> Iterator[LocalStep]:
            for step in local_steps(rank, [9], StepSize(1, 1)):
                if not number:
                    raise DataError("shard.jsonl:3: not JSON")
                number -= 1
                yield step

        steps = bad_after(3) if rank == 0 else local_steps(rank, [9], StepSize(1, 1))
        feed = StepFeed(steps, source(rank, 2), consensus, lambda: False, 7, max_steps=10)
        return list(feed)

    assert [len(batches) for batches in on_ranks(2, work)] == [3, 3]


def test_a_rank_that_waits_keeps_its_position() -> None:
    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        steps = local_steps(rank, [1] if rank == 0 else [3], StepSize(1, 1))
        return list(StepFeed(steps, source(rank, 2), consensus, lambda: False, 0))

    short, long = on_ranks(2, work)
    assert len(short) == len(long) == 3
    assert [float(batch.micro_batches[0].coefficients.sum()) for batch in short] == [1.0, 0.0, 0.0]
    assert [batch.counts.examples for batch in long] == [2, 1, 1]


def test_a_batch_carries_the_positions_that_changed_since_the_one_before() -> None:
    """Also of a local step of which no batch is made: its rows made no example on any rank."""
    size = StepSize(1, 1)
    first, second = (local_step([example(1, 2, line)], size, epoch=line - 1) for line in (1, 2))
    a, b = FilePosition(1, 0), FilePosition(0, 0)
    steps = [
        replace(first, positions={"a": a, "b": b}),
        replace(local_step([], size, end=True), positions={"b": b.after_row()}),
        replace(second, positions={"a": a.start_of_epoch(1)}),
    ]

    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        return list(StepFeed(steps, source(), consensus, lambda: False, 0))

    (batches,) = on_ranks(1, work)
    assert [batch.positions for batch in batches] == [
        {"a": a, "b": b},
        {"a": a.start_of_epoch(1), "b": b.after_row()},
    ]


def test_steps_are_numbered_from_where_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(noising, "step_shift", lambda seed, step: seen.append(step) or 0.5)

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


@pytest.mark.parametrize("first", [True, False])
def test_a_bad_row_on_one_rank_of_a_mixture_ends_all_ranks(first: bool) -> None:
    """What a rank says when it fails is as long as what the others say: one number a source."""

    def work(rank: int, consensus: Consensus) -> int:
        def failing() -> Iterator[LocalStep]:
            for number, step in enumerate(local_steps(rank, [3], StepSize(1, 1))):
                if rank == 0 and (first or number == 1):
                    raise DataError("chat/a.jsonl:2 (byte 9): bad")
                yield replace(step, by_source=(step.num_examples, 0))

        noise = source(rank, 2)
        return len(list(StepFeed(failing(), noise, consensus, lambda: False, 0, num_sources=2)))

    failed, other = on_ranks(2, work)
    assert isinstance(failed, DataError) and str(failed) == "chat/a.jsonl:2 (byte 9): bad"
    assert isinstance(other, PeerFailedError)
    assert str(other) == "1 other rank(s) stopped; see their lines"


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
