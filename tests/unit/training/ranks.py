"""Ranks that are threads of one process: for tests of what ranks agree on."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from llada_sft.errors import PeerFailedError
from llada_sft.training.consensus import Consensus, Report


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
        summed = report.together(torch.tensor(said))
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
