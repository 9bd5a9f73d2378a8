"""The numbers of the log that cover several steps."""

import pytest

from llada_sft.training.consensus import Report
from llada_sft.training.log import log_interval
from llada_sft.training.log.log_interval import Interval


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(log_interval.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


FIRST = Report(
    tokens=60, all_tokens=80, rows=8, bad=1, left_out=2, too_long=3, wait_us=2_000_000,
    rows_done=8, epoch_rows=40,
)  # fmt: skip
SECOND = Report(
    tokens=30, all_tokens=40, rows=16, bad=1, left_out=3, too_long=7, wait_us=4_000_000,
    rows_done=15, epoch_rows=40,
)  # fmt: skip


def test_rows_and_waits_grow_while_tokens_are_of_each_step(clock: Clock) -> None:
    one = Interval()
    one.add(FIRST)
    one.add(SECOND)
    clock.now += 10
    assert one.close(world_size=2) == {
        "tokens_per_s": 9.0,
        "tokens": 90,
        "all_tokens": 120,
        "fill": 0.75,
        "rows": 16,
        "bad_rows": 1,
        "left_out_rows": 3,
        "too_long": 7,
        # Two ranks waited four seconds together, of ten each.
        "data_wait": 0.2,
        "epoch_progress": 0.375,
    }


def test_an_interval_begins_where_the_one_before_ended(clock: Clock) -> None:
    one = Interval()
    one.add(FIRST)
    clock.now += 4
    one.close(1)
    one.add(SECOND)
    clock.now += 5
    second = one.close(1)
    assert (second["tokens_per_s"], second["tokens"], second["fill"]) == (6.0, 30, 0.75)
    assert (second["rows"], second["bad_rows"], second["too_long"]) == (8, 0, 4)
    assert (second["data_wait"], second["left_out_rows"]) == (0.4, 1)


def test_validation_takes_no_time_of_an_interval(clock: Clock) -> None:
    one = Interval()
    one.add(FIRST)
    clock.now += 3
    one.pause()
    clock.now += 1000
    one.resume()
    clock.now += 2
    metrics = one.close(1)
    assert (metrics["tokens_per_s"], metrics["data_wait"]) == (12.0, 0.4)


def test_data_wait_is_a_share(clock: Clock) -> None:
    one = Interval()
    one.add(FIRST)
    clock.now += 1
    assert one.close(1)["data_wait"] == 1.0


def test_shares_are_those_of_the_interval() -> None:
    one = Interval(["chat", "code"])
    one.add(Report(by_source=(3, 1)))
    one.add(Report(by_source=(4, 2)))
    first = one.close(world_size=1)
    assert (first["share_chat"], first["share_code"]) == (0.7, 0.3)
    one.add(Report(by_source=(0, 2)))
    second = one.close(world_size=1)
    assert (second["share_chat"], second["share_code"]) == (0.0, 1.0)
    assert one.close(world_size=1)["share_chat"] == 0.0
