"""Before anything is written into a run: does this process, or its job, still own it?

`ownership.py` registers the question; the journal and the failure reports ask it before each write.
A process that has claimed nothing is not asked: `status` only reads.
"""

from collections.abc import Callable
from pathlib import Path

_required: dict[Path, Callable[[], None]] = {}


def put_up(run: Path, require: Callable[[], None]) -> None:
    """Ask `require` before each write into a run directory; it raises, or ends the process."""
    _required[run.absolute()] = require


def take_down(run: Path) -> None:
    _required.pop(run.absolute(), None)


def check(run: Path) -> None:
    """Return if this process may write into the run directory.

    Raises:
        SupersededError: Another one owns it now.
    """
    if require := _required.get(run.absolute()):
        require()
