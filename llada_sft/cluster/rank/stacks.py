"""Where each rank stood when an attempt hung: `stacks/attempt_K_rank_N.txt`, and who is waited for.

    rank 2 of 4 on node2                                    written when the rank starts
    {"phase": "step", "step": 12, "place": "hook.py:3 ...    by the rank's watchdog, in a hang
    <the stacks of all threads, by faulthandler>

A file that ends after its first line is that of a rank that wrote no stack. One that goes on with
faulthandler's `Timeout` instead of the second line is that of a rank whose watchdog could not run:
C code held Python's lock.

Ranks find a hang at different times: their last signs of life differ, and some phases may take
longer than others. So the first that finds it calls all others through `stacks/attempt_K_call.txt`.
That file exists, empty, from the start: an NFS client may remember for a minute that a file is
missing, but asks the server about an existing file whenever it is opened.
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

# Modules that only wait for other ranks, whoever called them.
_COLLECTIVES = ("torch.distributed.", "deepspeed.comm.")
# Where a collective was begun before and its result is asked for: the last call is one of C.
_RESULTS = ("deepspeed.", "torch.cuda")
# So many of the ranks that are waited for are named one by one.
_SHOWN_RANKS = 4


@dataclass(frozen=True)
class Stand:
    """Where one rank stood.

    Attributes:
        rank, node: Which one; the node is empty for a local run, or where it is not known.
        place: "file.py:12 function" of its main thread; empty if it wrote no stack.
        phase: What it was doing (`training.host.Phase`); empty if its watchdog could not run.
        step: Optimizer steps that it had made.
        seconds: Since its last sign of life.
        waits: It stands in a call that waits for other ranks.
    """

    rank: int
    node: str = ""
    place: str = ""
    phase: str = ""
    step: int = 0
    seconds: float = 0.0
    waits: bool = False

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.node})" if self.node else f"rank {self.rank}"

    @property
    def described(self) -> str:
        """What is to be said of a rank that others wait for, after "which"."""
        if not self.place:
            return "wrote no stack: stopped, or its node is gone"
        lock = "" if self.phase else ", in C code that holds Python's lock"
        return f"stands in {self.place}{lock}"


# The types of the fields: the file of a rank may be torn or damaged.
_KINDS = {**get_type_hints(Stand), "seconds": int | float}


def title(rank: int, world_size: int, node: str) -> str:
    """Give the first line of a rank's file."""
    return f"rank {rank} of {world_size}" + (f" on {node}" if node else "") + "\n"


def header(stand: Stand) -> str:
    """Give its second line."""
    told = {name: getattr(stand, name) for name in ("phase", "step", "seconds", "place", "waits")}
    return json.dumps(told) + "\n"


def prepare_call(run: RunDir, attempt: int, rank: int) -> None:
    """Create the call file; rank 0 removes those of attempts that were killed."""
    own = run.hang_call(attempt)
    if rank == 0:
        own.write_bytes(b"")
        others = [path for path in run.stacks.glob("attempt_*_call.txt") if path != own]
        for path in others:
            if path.stat().st_size == 0:
                path.unlink()
    own.touch()


def call(run: RunDir, attempt: int, rank: int) -> None:
    """Ask all ranks where they stand."""
    with run.hang_call(attempt).open("a") as file:
        file.write(f"rank {rank} found a hang\n")


def is_called(run: RunDir, attempt: int) -> bool:
    """Tell whether a rank has asked."""
    try:
        return run.hang_call(attempt).read_bytes() != b""
    except OSError:
        return False


def read_all(run: RunDir, attempt: int, world_size: int) -> list[Stand]:
    """Read where all ranks stood, also those that said nothing."""
    return [_read(run, attempt, rank) for rank in range(world_size)]


def waited_for(stands: Sequence[Stand]) -> list[Stand]:
    """Name the ranks that the others wait for; none where all wait for one another.

    Whoever stands outside a collective is waited for; of several, those that have made fewer steps.
    If nobody does, it is whoever could not say where it stands; and at last, whoever is behind.
    """
    locked = [one for one in stands if one.place and not one.phase]
    told = [one for one in stands if one.phase]
    if busy := _behind([one for one in told if not one.waits]):
        return sorted(busy + locked, key=lambda one: one.rank)
    if silent := locked or [one for one in stands if not one.place]:
        return silent
    behind = _behind(told)
    return behind if len(behind) < len(told) else []


def judge(run: RunDir, attempt: int, stands: Sequence[Stand], seconds: float) -> list[Failure]:
    """Give the failure reports of all ranks of an attempt that hung.

    Args:
        run: The run directory.
        attempt: Which one.
        stands: Of all ranks, in their order.
        seconds: How long a rank waited that could not say it itself.
    """
    named = waited_for(stands)
    return [_failure(run, attempt, stand, stands, named, seconds) for stand in stands]


def clear_unused(run: RunDir, rank: int) -> None:
    """Remove the files of attempts that were killed: they have a first line alone."""
    for path in run.stacks.glob(f"attempt_*_rank_{rank}.txt"):
        if path.read_text(encoding="utf-8", errors="replace").count("\n") < 2:
            path.unlink()


def _failure(
    run: RunDir,
    attempt: int,
    stand: Stand,
    stands: Sequence[Stand],
    named: Sequence[Stand],
    seconds: float,
) -> Failure:
    waited = f"no step for {stand.seconds or seconds:.0f} s"
    if stand.phase:
        waited += f" in phase {stand.phase}"
    others = " and the other ranks wait for it;" if len(stands) > 1 else ""
    if stand in named:
        why = f"it {stand.described};{others}"
    elif named:
        names = [f"{one.name}, which {one.described}" for one in named]
        more = f"; and {len(names) - _SHOWN_RANKS} more" if len(names) > _SHOWN_RANKS else ""
        why = f"waiting for {'; '.join(names[:_SHOWN_RANKS])}{more};"
    else:
        why = "all ranks wait for one another: look at their devices and at the network;"
    return Failure(
        stand.rank,
        stand.node,
        Cause.HANG,
        f"{waited}: {why} see {run.stacks.name}/attempt_{attempt}_rank_*.txt",
        step=stand.step if stand.phase else None,
        consequence=bool(named) and stand not in named,
        time=time.time(),
    )


def place_of(frame: FrameType) -> str:
    """Say where a thread stands, in one line."""
    return _place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def waits(frames: Iterable[FrameType]) -> bool:
    """Tell whether any thread of a rank waits for other ranks.

    On CUDA the backward pass has a thread of its own, whose collectives the main thread waits for.
    """
    return any(_waits(frame) for frame in frames)


def _waits(frame: FrameType) -> bool:
    if _module(frame).startswith(_RESULTS):
        return True
    below: FrameType | None = frame
    while below is not None:
        if _module(below).startswith(_COLLECTIVES):
            return True
        below = below.f_back
    return False


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _behind(stands: Sequence[Stand]) -> list[Stand]:
    least = min((one.step for one in stands), default=0)
    return [one for one in stands if one.step == least]


def _place(file: str, line: int, function: str) -> str:
    return f"{file.rpartition('/')[2]}:{line} {function}"


def _read(run: RunDir, attempt: int, rank: int) -> Stand:
    try:
        text = run.rank_stacks(attempt, rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Stand(rank)
    first, _, rest = text.partition("\n")
    node = first.partition(" on ")[2]
    told, _, _ = rest.partition("\n")
    try:
        stand = Stand(rank, node, **json.loads(told))
    except (ValueError, TypeError, RecursionError):
        return Stand(rank, node, place=_last_place(rest))
    return stand if _fits(stand) else Stand(rank, node)


def _fits(stand: Stand) -> bool:
    return all(isinstance(getattr(stand, name), kind) for name, kind in _KINDS.items())


def _last_place(text: str) -> str:
    """Give the place of the main thread, which faulthandler writes last."""
    _, _, main = text.rpartition("(most recent call first):")
    found = re.search(r'^ +File "(.*)", line (\d+) in (.*)$', main, re.MULTILINE)
    return _place(found[1], int(found[2]), found[3]) if found else ""
