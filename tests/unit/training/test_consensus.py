"""What the ranks agree on; the other ranks' numbers are put into the collective here."""

from collections.abc import Sequence
from dataclasses import fields

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from llada_sft.errors import PeerFailedError
from llada_sft.training.consensus import Consensus, Report


def consensus(monkeypatch: pytest.MonkeyPatch, others: Sequence[object]) -> Consensus:
    """Return one rank's consensus; `others` is what the other ranks give to each reduction."""
    group = object()

    def all_reduce(
        tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM, group: object = None
    ) -> None:
        assert group is ours
        reduce = torch.maximum if op == dist.ReduceOp.MAX else torch.add
        for other in others:
            tensor.copy_(reduce(tensor, torch.tensor(other)))

    def all_gather(ranks: list[Tensor], own: Tensor, group: object = None) -> None:
        assert group is ours
        for rank, numbers in zip(ranks, [own, *map(torch.tensor, others)], strict=True):
            rank.copy_(numbers)

    ours = group
    monkeypatch.setattr(dist, "new_group", lambda *args, **kwargs: group)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 1 + len(others))
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    return Consensus()


def test_reports_are_summed_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [field.name for field in fields(Report)][:-2]
    single = {name: 1 + number for number, name in enumerate(names)}
    numbers = Report(**single, by_source=(50, 60), by_level=(7,))
    others = [100 * number for number in numbers.numbers()]
    together = consensus(monkeypatch, [others]).agree(numbers)
    expected = {name: 101 * (1 + number) for number, name in enumerate(names)}
    # The longest way to the end is that of all, and the rank with the most of it counts.
    for name in ("steps_left", "epoch_steps", "most_work", "gpu_bytes", "resident_bytes"):
        expected[name] = 100 * (1 + names.index(name))
    # Of two, the lower one is the median.
    expected["own_us"] = 1 + names.index("own_us")
    expected["most_own_us"] = 100 * expected["own_us"]
    expected["slowest_rank"] = 1
    assert together == Report(**expected, by_source=(5050, 6060), by_level=(707,))


def test_one_rank_has_the_longest_way_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Report(steps_left=5, epoch_steps=12, estimated=1).numbers()
    together = consensus(monkeypatch, [other]).agree(Report(steps_left=7, epoch_steps=9))
    assert together == Report(steps_left=7, epoch_steps=12, estimated=1)


def test_the_slowest_rank_is_the_one_that_needs_most_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = [Report(own_us=us).numbers() for us in (20, 70, 30)]
    together = consensus(monkeypatch, others).agree(Report(own_us=10))
    assert (together.own_us, together.most_own_us, together.slowest_rank) == (20, 70, 2)


def test_a_rank_learns_that_others_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Report(failed=1).numbers()
    with pytest.raises(PeerFailedError, match=r"^2 other rank\(s\) stopped; see their lines$"):
        consensus(monkeypatch, [failed, failed]).agree(Report())


def test_the_rank_that_failed_has_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = consensus(monkeypatch, [Report().numbers()])
    assert healthy.agree(Report(failed=1)).failed == 1


def test_the_largest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert consensus(monkeypatch, [5, 2]).largest(3) == 5
    assert consensus(monkeypatch, [5, 2]).largest(7) == 7
