"""For all tests: one thread each, no time limit of properties, and /dev/null stays a device."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The suites run side by side. With two threads each, small products on two cores wait for one
# another at every barrier: the same tests took 6 to 60 times as long. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU, Triton's kernels run in its interpreter, if Triton is installed. It decides so when
# it is imported, and torch imports it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A property holds or not, however busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# The tests after which /dev/null was a file: as root, whoever moves a file there replaces it for
# the whole machine.
_replaced_null: list[str] = []


def pytest_runtest_logfinish(nodeid: str) -> None:
    if not _replaced_null and not Path(os.devnull).is_char_device():
        _replaced_null.append(nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for nodeid in _replaced_null:
        terminalreporter.write_line(f"warning: {os.devnull} is no device any more, since {nodeid}")
