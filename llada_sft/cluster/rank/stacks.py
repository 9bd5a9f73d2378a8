"""Where each rank was when an attempt hung, and the rank that others wait for.

The stacks are in `stacks/attempt_K_rank_N.txt`.

    rank 2 of 4 on node2                                    written when the rank starts
    {"phase": "step", "step": 12, "place": "hook.py:3 ...    by the rank's watchdog, in a hang
    <the stacks of all threads, by faulthandler>

If the file of a rank ends after its first line, the rank wrote no stack. If the second line is
missing and faulthandler's `Timeout` follows, the watchdog could not run: C code held the GIL.

Ranks detect a hang at different times: their last signs of life differ, and some phases may take
longer than others. The first rank that detects the hang calls all others through
`stacks/attempt_K_call.txt`. That file exists, empty, from the start: an NFS client may remember for
a minute that a file is missing, but asks the server about an existing file whenever it is opened.
"""

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import get_type_hints

from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.run_dir import RunDir

# Modules that only wait for other ranks.
_COLLECTIVES = ("torch.distributed.", "deepspeed.comm.", "llada_sft.training.nodes.meeting")
# Modules that wait for the result of a collective that was started before, in a call of C code.
_RESULTS = ("deepspeed.", "torch.cuda")
# How many of the ranks that are waited for are named one by one.
_SHOWN_RANKS = 4
# The keys of the second line of a rank's file, and the attributes of RankState that they hold.
_KEYS = {
    "phase": "phase",
    "step": "step",
    "seconds": "seconds",
    "place": "place",
    "waits": "in_collective",
}


@dataclass(frozen=True)
class RankState:
    """Where one rank was, and what it was doing.

    Attributes:
        rank: The rank.
        node: Its node; empty for a local run, or if it is not known.
        place: "file.py:12 function" of its main thread; empty if it wrote no stack.
        phase: What it was doing (`training.host.Phase`); empty if its watchdog could not run.
        step: The number of optimizer steps that it had made.
        seconds: Seconds since its last sign of life.
        in_collective: Whether it was in a call that waits for other ranks.
    """

    rank: int
    node: str = ""
    place: str = ""
    phase: str = ""
    step: int = 0
    seconds: float = 0.0
    in_collective: bool = False

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.node})" if self.node else f"rank {self.rank}"

    @property
    def described(self) -> str:
        """What a failure report says of a rank that others wait for, after "which"."""
        if not self.place:
            return "wrote no stack: stopped, or its node is gone"
        lock = "" if self.phase else ", in C code that holds Python's lock"
        return f"is in {self.place}{lock}"


# The types of the attributes: the file of a rank may be torn or damaged.
_TYPES = {**get_type_hints(RankState), "seconds": int | float}


def title(rank: int, world_size: int, node: str) -> str:
    """Return the first line of a rank's file."""
    return f"rank {rank} of {world_size}" + (f" on {node}" if node else "") + "\n"


def header(state: RankState) -> str:
    """Return the second line of a rank's file."""
    content = {key: getattr(state, attribute) for key, attribute in _KEYS.items()}
    return json.dumps(content) + "\n"


def prepare_call(run: RunDir, attempt: int, rank: int) -> None:
    """Create the call file; rank 0 removes the call files of attempts that were killed."""
    call_file = run.hang_call(attempt)
    if rank == 0:
        call_file.write_bytes(b"")
        for path in list(run.stacks.glob("attempt_*_call.txt")):
            if path != call_file and path.stat().st_size == 0:
                path.unlink()
    call_file.touch()


def call(run: RunDir, attempt: int, rank: int) -> None:
    """Ask all ranks to report where they are."""
    with run.hang_call(attempt).open("a") as file:
        file.write(f"rank {rank} found a hang\n")


def is_called(run: RunDir, attempt: int) -> bool:
    """Return whether a rank has called the others."""
    try:
        return run.hang_call(attempt).read_bytes() != b""
    except OSError:
        return False


def read_all(run: RunDir, attempt: int, world_size: int) -> list[RankState]:
    """Read the states of all ranks, in their order, including ranks that wrote nothing."""
    return [_read(run, attempt, rank) for rank in range(world_size)]


def waited_for(states: Sequence[RankState]) -> list[RankState]:
    """Return the ranks that the others wait for; none if all wait for one another.

    Ranks outside a collective are waited for; of several, those that have made the fewest steps.
    If all are in a collective, the others wait for the ranks that could not report; and if all
    reported, for the ranks that are late.
    """
    locked = [state for state in states if state.place and not state.phase]
    reported = [state for state in states if state.phase]
    if busy := _behind([state for state in reported if not state.in_collective]):
        return sorted(busy + locked, key=lambda state: state.rank)
    if silent := locked or [state for state in states if not state.place]:
        return silent
    behind = _behind(reported)
    return behind if len(behind) < len(reported) else []


def failure_reports(
    run: RunDir, attempt: int, states: Sequence[RankState], seconds: float
) -> list[Failure]:
    """Return the failure reports of all ranks of an attempt that hung.

    Args:
        run: The run directory.
        attempt: The number of the attempt.
        states: The states of all ranks, in their order.
        seconds: How long ranks waited that could not report it themselves.
    """
    culprits = waited_for(states)
    return [
        Failure(
            rank=state.rank,
            node=state.node,
            cause=Cause.HANG,
            error=f"{_error(state, states, culprits, seconds)}"
            f" see {run.stacks.name}/attempt_{attempt}_rank_*.txt",
            step=state.step if state.phase else None,
            consequence=bool(culprits) and state not in culprits,
            time=time.time(),
        )
        for state in states
    ]


def clear_unused(run: RunDir, rank: int) -> None:
    """Remove the files of attempts that were killed: these files have only a first line."""
    for path in run.stacks.glob(f"attempt_*_rank_{rank}.txt"):
        if path.read_text(encoding="utf-8", errors="replace").count("\n") < 2:
            path.unlink()


def _error(
    state: RankState,
    states: Sequence[RankState],
    culprits: Sequence[RankState],
    seconds: float,
) -> str:
    waited = f"no step for {state.seconds or seconds:.0f} s"
    if state.phase:
        waited += f" in phase {state.phase}"
    if state in culprits:
        others = " and the other ranks wait for it;" if len(states) > 1 else ""
        return f"{waited}: it {state.described};{others}"
    if culprits:
        names = [f"{culprit.name}, which {culprit.described}" for culprit in culprits]
        more = f"; and {len(names) - _SHOWN_RANKS} more" if len(names) > _SHOWN_RANKS else ""
        return f"{waited}: waiting for {'; '.join(names[:_SHOWN_RANKS])}{more};"
    return f"{waited}: all ranks wait for one another: look at their devices and at the network;"


def place_of(frame: FrameType) -> str:
    """Return the place of a thread, in one line."""
    return _place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def in_collective(frames: Iterable[FrameType]) -> bool:
    """Return whether any thread of a rank waits for other ranks.

    On CUDA the backward pass has its own thread, and the main thread waits for its collectives.
    """
    return any(_is_in_collective(frame) for frame in frames)


def _is_in_collective(frame: FrameType) -> bool:
    if _module(frame).startswith(_RESULTS):
        return True
    caller: FrameType | None = frame
    while caller is not None:
        if _module(caller).startswith(_COLLECTIVES):
            return True
        caller = caller.f_back
    return False


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _behind(states: Sequence[RankState]) -> list[RankState]:
    least = min((state.step for state in states), default=0)
    return [state for state in states if state.step == least]


def _place(file: str, line: int, function: str) -> str:
    return f"{file.rpartition('/')[2]}:{line} {function}"


def _read(run: RunDir, attempt: int, rank: int) -> RankState:
    try:
        text = run.rank_stacks(attempt, rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return RankState(rank)
    first, _, rest = text.partition("\n")
    node = first.partition(" on ")[2]
    second, _, _ = rest.partition("\n")
    try:
        content = {_KEYS[key]: value for key, value in json.loads(second).items()}
        state = RankState(rank, node, **content)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return RankState(rank, node, place=_last_place(rest))
    return state if _has_right_types(state) else RankState(rank, node)


def _has_right_types(state: RankState) -> bool:
    return all(isinstance(getattr(state, name), kind) for name, kind in _TYPES.items())


def _last_place(text: str) -> str:
    """Return the place of the main thread, which faulthandler writes last."""
    _, _, main = text.rpartition("(most recent call first):")
    place = re.search(r'^ +File "(.*)", line (\d+) in (.*)$', main, re.MULTILINE)
    return _place(place[1], int(place[2]), place[3]) if place else ""
