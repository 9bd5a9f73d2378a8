"""Checks before each write into a run that this process, or its job, still owns it.

`ownership.py` registers the check; the journal and the failure reports call it before each write.
A process that has claimed nothing has no check: `status` only reads.
"""

from collections.abc import Callable
from pathlib import Path

_required: dict[Path, Callable[[], None]] = {}


def put_up(run: Path, require: Callable[[], None]) -> None:
    """Register `require`: it raises, or ends the process, if the run has another owner."""
    _required[run.absolute()] = require


def take_down(run: Path) -> None:
    _required.pop(run.absolute(), None)


def check(run: Path) -> None:
    """Return if this process may write into the run directory.

    Raises:
        SupersededError: Another owner has taken the run over.
    """
    if require := _required.get(run.absolute()):
        require()
