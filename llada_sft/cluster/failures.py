"""What a rank that cannot go on leaves behind: `failures/rank_N.json`, whole or not there.

Each rank writes its own, so that no two nodes ever append to one file over the network; who judges
the attempt (`supervisor.py`) reads them all. A rank that is killed leaves none.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llada_sft.cluster.causes import Cause
from llada_sft.run_dir import RunDir


@dataclass(frozen=True)
class Failure:
    """One rank's last words.

    Attributes:
        rank: Which one.
        node: Where it ran; empty for a local run.
        cause: What happened.
        error: One line per problem, without a traceback.
        step: The optimizer steps that were made, where that is known.
        traceback: Python's, empty for a user's mistake.
        consequence: It failed only because another rank did.
        time: Seconds since 1970, of the rank's own clock.
    """

    rank: int
    node: str
    cause: Cause
    error: str
    step: int | None = None
    traceback: str = ""
    consequence: bool = False
    time: float = 0.0


def write(run: RunDir, failure: Failure) -> None:
    """Leave a rank's last words."""
    path = run.failure(failure.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(asdict(failure)) + "\n", encoding="utf-8")
    beside.replace(path)


def read_all(run: RunDir) -> list[Failure]:
    """Read the last words of all ranks, in their order."""
    found = [_read(path) for path in run.failures.glob("rank_*.json")]
    return sorted(found, key=lambda failure: failure.rank)


def clear(run: RunDir) -> None:
    """Forget those of the attempt before."""
    for path in run.failures.glob("rank_*"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Failure:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Failure(**{**fields, "cause": Cause(fields["cause"])})
