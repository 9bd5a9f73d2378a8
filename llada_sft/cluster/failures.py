"""The failure report of a rank that cannot continue: `failures/rank_N.json`.

Each rank writes its own, so that no two nodes ever append to one file over the network; the code
that judges the attempt (`supervisor.py`) reads them all. A rank that is killed leaves none, and a
file that is empty, torn or foreign counts as none.

A rank has one report, whatever the order of events: the first that it wrote itself, or else the one
that another rank wrote for it.
"""

import json
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

from llada_sft import atomic
from llada_sft.cluster import run_files
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.owner import fence
from llada_sft.run_dir import RunDir


@dataclass(frozen=True)
class Failure:
    """A rank's failure report.

    Attributes:
        rank: Which one.
        node: Where it ran; empty for a local run.
        cause: What happened.
        error: One line per problem, without a traceback.
        step: The optimizer steps that were made, where that is known.
        traceback: Python's, empty for a user's mistake.
        consequence: It failed only because another rank did.
        time: Seconds since 1970, of the rank's own clock.
        witness: The rank that wrote it, where the rank itself could not.
    """

    rank: int
    node: str
    cause: Cause
    error: str
    step: int | None = None
    traceback: str = ""
    consequence: bool = False
    time: float = 0.0
    witness: int | None = None


_MAX_BYTES = 1 << 20
# The types of the fields: `Failure` itself does not check them.
_KINDS = get_type_hints(Failure)


def write(run: RunDir, failure: Failure) -> None:
    """Leave a failure report, unless the rank has one that says more.

    The rank's own first report stays. It replaces what another rank wrote for it; but "another rank
    failed" replaces nothing. Nothing is written where another owner has the run now.
    """
    fence.check(run.path)
    path = run.failure(failure.rank)
    there = _read(path)
    yields = failure.consequence or failure.witness is not None
    if there is not None and (yields or there.witness is None):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = failure.rank if failure.witness is None else failure.witness
    partial = path.with_suffix(f".{writer}.{threading.get_ident()}.partial")
    atomic.write_synced(partial, json.dumps(asdict(failure)) + "\n")
    try:
        if not (yields and there is None and _link(partial, path)):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_all(run: RunDir) -> list[Failure]:
    """Read the failure reports of all ranks, in their order."""
    reported = [failure for path in run.failures.glob("rank_*.json") if (failure := _read(path))]
    return sorted(reported, key=lambda failure: failure.rank)


def clear(run: RunDir) -> None:
    """Forget those of the attempt before."""
    for path in run.failures.glob("rank_*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _read(path: Path) -> Failure | None:
    """Read one report; None for whatever else may be in its place."""
    try:
        fields = json.loads(run_files.read_end(path, _MAX_BYTES))
        parsed = {"cause": Cause(fields["cause"]), "time": float(fields.get("time", 0.0))}
        failure = Failure(**{**fields, **parsed})
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    fits = all(isinstance(getattr(failure, name), kinds) for name, kinds in _KINDS.items())
    return failure if fits and path.name == f"rank_{failure.rank}.json" else None


def _link(partial: Path, path: Path) -> bool:
    """Put a report in place if there is none; tell whether there is one now."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        # The rank has written its own at this moment; or the file is not a report.
        return _read(path) is not None
    except OSError:
        # A file system without hard links.
        return False
    return True
