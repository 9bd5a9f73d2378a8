"""What a run does between its start and its first step: which ranks do the others wait for?"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from llada_sft.cluster.history import Attempt
from llada_sft.cluster.rank import phases
from llada_sft.cluster.rank.phases import PHASES, RankPhase
from llada_sft.run_dir import RunDir

# How many of the ranks that are waited for are named.
_SHOWN_RANKS = 2
_ORDER = tuple(PHASES)


def doing(run: RunDir, attempt: Attempt, now: float | None = None) -> str:
    """Return what an attempt does until its first step; empty after that step.

    Ranks in an earlier phase than the others are those that the others wait for. While rank 0
    trains, all have made the first step, and no other file is read.
    """
    world_size = attempt.world_size
    rank_0 = phases.read_phase(run, attempt.number, 0)
    if rank_0 is not None and rank_0.phase == _ORDER[-1]:
        return ""
    states = phases.read_phases(run, attempt.number, world_size)
    if not states:
        # The ranks of an older version write no phases, but the step that they resumed from.
        has_resumed = attempt.resumed_step is not None
        return "" if has_resumed else "waiting for its ranks to start"
    now = time.time() if now is None else now
    if len(states) < world_size:
        missing = _missing(states, world_size)
        return f"waiting for {_ranks(missing, world_size - len(states))} to start"
    first = min(_ORDER.index(state.phase) for state in states)
    late = [state for state in states if _ORDER.index(state.phase) == first]
    if len(late) == len(states):
        return f"{PHASES[late[0].phase]} for {age(now - late[0].since)}"
    waited_for = _ranks((state.rank for state in late), len(late))
    return f"waiting for {waited_for}; {_described(late[0], now)}"


def total_steps(run: RunDir, attempt: Attempt) -> int | None:
    """Return the steps of the whole training as rank 0 knew them at its first step, or None."""
    rank_0 = phases.read_phase(run, attempt.number, 0)
    return None if rank_0 is None else rank_0.total_steps


def age(seconds: float) -> str:
    """Return a duration in its largest unit: "40 s", "12 min", "3 h"."""
    for unit_s, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _missing(states: Sequence[RankPhase], world_size: int) -> Iterator[int]:
    known = {state.rank for state in states}
    return (rank for rank in range(world_size) if rank not in known)


def _ranks(ranks: Iterator[int], count: int) -> str:
    """Name a few ranks: "rank 3", "ranks 3 and 17", "ranks 3, 17 and 4 more"."""
    # One more rank is named: "and 1 more" would be no shorter.
    most = _SHOWN_RANKS + (count == _SHOWN_RANKS + 1)
    shown = list(map(str, islice(ranks, most)))
    if count > most:
        return f"ranks {', '.join(shown)} and {count - most} more"
    before, last = ", ".join(shown[:-1]), shown[-1]
    return f"ranks {before} and {last}" if before else f"rank {last}"


def _described(state: RankPhase, now: float) -> str:
    node = f" on {state.node}" if state.node else ""
    return f"rank {state.rank}{node} is {PHASES[state.phase]} for {age(now - state.since)}"
