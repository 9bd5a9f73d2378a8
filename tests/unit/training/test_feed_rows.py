"""What the steps carry about the rows: counts, the end of an epoch, the time waited."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.training import feed
from llada_sft.training.callbacks.row_summary import RowSummary
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepFeed
from llada_sft.training.noising import StepBatch
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import local_steps, source


def counting_steps(rank: int, epochs: Sequence[int]) -> Iterator[LocalStep]:
    """Each step has read two rows, one of them bad; at the end of an epoch there is a third."""
    bad = {"not_json": 1} if rank == 0 else {"bad_record": 1}
    for epoch, count in enumerate(epochs):
        for step in local_steps(rank, [count], StepSize(1, 1)):
            read = 3 if step.end_of_epoch else 2
            rows = RowCounts(rows=read, bad=bad, clipped=1, dropped_by_hook=read - 2)
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
    rows = RowCounts(rows=5, bad={"not_json": 2}, clipped=2, dropped_by_hook=1)
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
                "4 too long (4 clipped), 2 dropped by the hook",
                "epoch 2: 14 rows, 6 bad (3 bad_record, 3 not_json: quarantine/), "
                "6 too long (6 clipped), 2 dropped by the hook",
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
                "4 too long (4 clipped), 2 dropped by the hook",
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
