"""Checks before each write into a run that this process, or its job, still owns it.

`ownership.py` registers the check; the journal and the failure reports call it before each write.
For a process that has claimed nothing (`status` only reads) there is no check.
"""

from collections.abc import Callable
from pathlib import Path

_required: dict[Path, Callable[[], None]] = {}


def put_up(run: Path, require: Callable[[], None]) -> None:
    """Call `require` before each write into a run directory; it raises, or ends the process."""
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
