"""What the ranks agree on; the other ranks' numbers are put into the reduction here."""

from collections.abc import Sequence

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

    ours = group
    monkeypatch.setattr(dist, "new_group", lambda *args, **kwargs: group)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return Consensus()


def test_reports_are_summed_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Report(*range(1, 15), by_source=(15, 16)).numbers()
    assert numbers == list(range(1, 17))
    others = Report(*range(100, 1500, 100), by_source=(1500, 1600)).numbers()
    summed = consensus(monkeypatch, [others]).agree(Report.of(numbers))
    assert summed == Report(*(101 * i for i in range(1, 15)), by_source=(1515, 1616))


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
