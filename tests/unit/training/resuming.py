"""Ranks that are threads, and look together for the checkpoint to resume from."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.resume import Resume, find_resume
from llada_sft.training.host import Host
from tests.unit.training.checkpoint_files import NETWORK


class Threads:
    """Ranks that are threads: gathers what each of them says."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size)
        self._said: list[Any] = [None] * world_size

    def of_rank(self, rank: int) -> Any:
        owner = self

        class OfRank:
            def gather(self, item: object) -> list[object]:
                owner._said[rank] = item
                owner._barrier.wait(20)
                said = list(owner._said)
                owner._barrier.wait(20)
                return said

        return OfRank()


class Seen:
    """What became of each rank."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Resume | Exception] = {}
        self.notes: list[dict[str, Any]] = []
        self.pulses = 0


def resume(
    run: Path,
    world_size: int = 2,
    network: Any = NETWORK,
    stop: Callable[[int], bool] = lambda rank: False,
    require_owner: Callable[[], None] = lambda: None,
    other_ranks: bool = True,
) -> Seen:
    threads, seen = Threads(world_size), Seen()

    def rank_main(rank: int) -> None:
        def pulse(phase: str, step: int) -> None:
            seen.pulses += 1

        host = Host(
            note=lambda entry: seen.notes.append(dict(entry)),
            pulse=pulse,
            stop_requested=lambda: stop(rank),
            require_owner=require_owner,
        )
        place = Placement(rank, world_size, rank, 0, "", 0)
        try:
            consensus = threads.of_rank(rank)
            seen.outcomes[rank] = find_resume(
                RunDir(run), place, consensus, host, network, other_ranks=other_ranks
            )
        except Exception as error:
            seen.outcomes[rank] = error

    ranks = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world_size)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
    assert len(seen.outcomes) == world_size
    return seen
