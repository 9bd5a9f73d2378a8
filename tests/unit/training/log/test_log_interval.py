"""The numbers of the log that cover several steps."""

from dataclasses import replace

import pytest

from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.families import llada
from llada_sft.training.consensus import Report
from llada_sft.training.log import log_interval
from llada_sft.training.log.efficiency import Efficiency
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
    rows_done=8, epoch_rows=40, work=90, most_work=50, resident_bytes=3 * 10**9,
)  # fmt: skip
SECOND = Report(
    tokens=30, all_tokens=40, rows=16, bad=1, left_out=3, too_long=7, wait_us=4_000_000,
    rows_done=15, epoch_rows=40, work=30, most_work=25, resident_bytes=4 * 10**9,
)  # fmt: skip


def test_rows_and_waits_grow_while_tokens_are_of_each_step(clock: Clock) -> None:
    one = Interval()
    one.add(FIRST)
    one.add(SECOND)
    clock.now += 10
    assert one.close(world_size=2) == {
        "tokens_per_s": 9.0,
        "all_tokens_per_s": 12.0,
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
        # Two ranks have 60 each; the busiest ones have 75.
        "balance": 0.8,
        "resident_gb": 4.0,
    }


def test_what_a_gpu_does_is_logged_where_it_is_known(clock: Clock) -> None:
    sizes = NetworkConfig(
        llada.FAMILY.config_json(d_model=4, n_layers=2, n_heads=2, mlp_hidden_size=8, vocab_size=10)
    ).architecture
    efficiency = Efficiency(sizes, peak=1000.0)
    one, counts = Interval((), efficiency), replace(FIRST, gpu_bytes=2 * 10**9, squares=100)
    for seconds in (10, 5):
        one.add(counts)
        one.add(counts)
        clock.now += seconds
        metrics = one.close(world_size=2)
        assert metrics["mfu"] == 2 * efficiency.needed(counts) / seconds / 2 / 1000
        assert metrics["gpu_gb"] == 2.0
    unknown = Interval((), Efficiency(sizes, peak=None))
    unknown.add(FIRST)
    assert not {"mfu", "gpu_gb"} & unknown.close(1).keys()


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
    assert second["balance"] == 1.2
    assert one.close(1)["balance"] == 1.0


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


def test_the_slowest_rank_is_the_one_that_was_it_most_often(clock: Clock) -> None:
    one = Interval()
    for rank, own_us, most_us in ((2, 100, 150), (1, 100, 110), (2, 200, 340), (0, 0, 0)):
        one.add(Report(own_us=own_us, most_own_us=most_us, slowest_rank=rank))
    clock.now += 1
    metrics = one.close(world_size=3)
    assert (metrics["slowest_rank"], metrics["slowest_ratio"]) == (2, 1.5)
    # The next interval starts with nothing, and one rank has nobody to compare with.
    assert "slowest_rank" not in one.close(world_size=3)
    one.add(Report(own_us=5, most_own_us=5))
    assert "slowest_rank" not in one.close(world_size=1)
