"""The ranks exchange small values through rank 0's store, and each wait has a limit.

It works before there is a process group: what the ranks must agree on for NCCL to start can still
differ. The store is the one that `torch.distributed` then uses, at the same address: torch shares
it within a process. Whoever is silent is known by rank, which a collective would not say.
"""

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from llada_sft.placement import Placement

# Rank 0 looks for answers first after 5 ms, then more and more seldom.
_FIRST_POLL_S, _LAST_POLL_S = 0.005, 0.25
# How long the ranks may take to start before a line says whom the others wait for.
_LATE_S = 60.0


class SilentError(Exception):
    """Ranks gave no answer within the limit.

    Attributes:
        ranks: Which ones.
    """

    def __init__(self, ranks: list[int]) -> None:
        super().__init__(f"no answer of ranks {ranks}")
        self.ranks = ranks


class Meeting:
    """One rank's view of the store.

    Args:
        placement: This rank.
        timeout: How long the other ranks may take to start.
    """

    def __init__(self, placement: Placement, timeout: timedelta) -> None:
        self._rank, self._world_size = placement.rank, placement.world_size
        self._timeout = timeout
        store = dist.TCPStore(  # type: ignore[attr-defined]
            placement.master_addr,
            placement.master_port,
            is_master=placement.rank == 0,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
        self._store = dist.PrefixStore("nodes", store)  # type: ignore[attr-defined]

    def answer(self, name: str, value: Any) -> None:
        """Give rank 0 this rank's value; anything that JSON can hold."""
        self._store.set(f"{name}/{self._rank}", json.dumps(value))
        self._store.add(name, 1)

    def answers(self, name: str, limit_s: float) -> Iterator[Any]:
        """Wait on rank 0 until all ranks have answered; yield their values in rank order.

        Raises:
            SilentError: Some have not, after the limit.
        """
        if not self._all_answered(name, limit_s):
            raise SilentError(self.silent(name))
        for rank in range(self._world_size):
            yield json.loads(self._store.get(f"{name}/{rank}"))

    def wait_for_start(self, name: str, say: Callable[[str], None]) -> None:
        """Wait on rank 0 until all ranks have given their first answer, however late they are.

        What a start may take is the watchdog's affair; here a line says who is late.
        """
        late_s = _LATE_S
        while not self._all_answered(name, late_s):
            silent = self.silent(name)
            say(f"waiting for {_counted(silent)} of {self._world_size} to start")
            late_s *= 2

    def value(self, name: str, rank: int) -> Any:
        """Return what a rank has answered; None if it has not."""
        key = f"{name}/{rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def silent(self, name: str) -> list[int]:
        """Return the ranks that have not answered."""
        return [
            rank for rank in range(self._world_size) if not self._store.check([f"{name}/{rank}"])
        ]

    def announce(self, name: str, value: Any) -> None:
        """Give all ranks a value of rank 0's."""
        self._store.set(name, json.dumps(value))

    def hear(self, name: str, limit_s: float | None = None) -> Any:
        """Wait for a value that rank 0 announces; without a limit, as long as a start may take.

        Raises:
            SilentError: Rank 0 has not announced it within the limit.
        """
        timeout = self._timeout if limit_s is None else timedelta(seconds=limit_s)
        try:
            self._store.wait([name], timeout)
        except dist.DistStoreError:
            if limit_s is None:
                raise
            raise SilentError([0]) from None
        return json.loads(self._store.get(name))

    def leave(self) -> None:
        """Say that this rank needs the store no more."""
        self._store.add("left", 1)

    def wait_for_leaving(self, limit_s: float) -> None:
        """Wait on rank 0, which has the store, until the others need it no more."""
        self.leave()
        self._all_answered("left", limit_s)

    def _all_answered(self, name: str, limit_s: float) -> bool:
        deadline, pause_s = time.monotonic() + limit_s, _FIRST_POLL_S
        while self._store.add(name, 0) < self._world_size:
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_POLL_S)
        return True


def _counted(ranks: list[int]) -> str:
    """Return "rank 3", or "5 ranks (3, 4, 5, 6, ...)"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:4])) + (", ..." if ranks[4:] else "")
    return f"{len(ranks)} ranks ({shown})"
