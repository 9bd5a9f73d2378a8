"""What each rank does between its start and its first step: `phases/rank_N`.

A rank replaces its own small file whenever it enters a phase; `status` reads the files of all
ranks. A file of another attempt, and one that is torn or foreign, counts as none.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import get_type_hints

from llada_sft import atomic
from llada_sft.cluster import run_files
from llada_sft.cluster.owner import fence
from llada_sft.run_dir import RunDir

# In their order; the last one has no end.
PHASES = {
    "imports": "importing its libraries",
    "ranks": "meeting the other ranks",
    "checkpoint": "looking for a checkpoint",
    "conversion": "converting the checkpoint",
    "data": "preparing its rows",
    "network": "loading the model",
    "first step": "making the first step",
    "training": "training",
}
_MAX_BYTES = 1 << 12
# More files than these are not read: `status` is for a person who waits.
_MOST_FILES = 8192


@dataclass(frozen=True)
class RankPhase:
    """What one rank does.

    Attributes:
        rank: The rank.
        attempt: The attempt's number.
        phase: A key of PHASES.
        since: Seconds since 1970, of the rank's own clock.
        node: Its node; empty for a local run.
        total_steps: The steps of the whole training, as far as they are known.
    """

    rank: int
    attempt: int
    phase: str
    since: float
    node: str = ""
    total_steps: int | None = None


_KINDS = {**get_type_hints(RankPhase), "since": int | float}


def record_phase(run: RunDir, phase: RankPhase) -> None:
    """Write what a rank does; where that cannot be done, `status` does not know it.

    Raises:
        SupersededError: Another owner has taken the run over.
    """
    fence.check(run.path)
    path = run.rank_phase(phase.rank)
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic.replacing(path) as partial:
            partial.write_text(json.dumps(asdict(phase)) + "\n", encoding="utf-8")
    except OSError:
        # The training does not need it.
        return


def clear_phases(run: RunDir) -> None:
    """Forget those of the attempt before."""
    shutil.rmtree(run.phases, ignore_errors=True)


def read_phase(run: RunDir, attempt: int, rank: int) -> RankPhase | None:
    """Read what a rank does in an attempt; None where that is not known."""
    try:
        phase = RankPhase(**json.loads(run_files.read_start(run.rank_phase(rank), _MAX_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    fits = all(
        isinstance(value, kinds) and type(value) is not bool
        for value, kinds in ((getattr(phase, name), kinds) for name, kinds in _KINDS.items())
    )
    is_current = fits and (phase.rank, phase.attempt) == (rank, attempt)
    return phase if is_current and phase.phase in PHASES else None


def read_phases(run: RunDir, attempt: int, world_size: int) -> list[RankPhase]:
    """Read what the ranks of an attempt do, in their order; without those that are not known."""
    ranks = sorted(rank for rank in _ranks_with_a_file(run) if rank < world_size)[:_MOST_FILES]
    phases = (read_phase(run, attempt, rank) for rank in ranks)
    return [phase for phase in phases if phase is not None]


def _ranks_with_a_file(run: RunDir) -> Iterator[int]:
    try:
        names = [path.name for path in run.phases.iterdir()]
    except OSError:
        return
    for name in names:
        kind, _, number = name.partition("_")
        if kind == "rank" and number.isascii() and number.isdecimal() and len(number) < 9:
            yield int(number)
