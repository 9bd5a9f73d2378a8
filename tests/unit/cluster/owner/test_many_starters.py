"""Random starters of one run, killed at random; `many_starters.py` says what a case is."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 4])
def test_one_trains_and_nothing_is_lost(first: int) -> None:
    # A process of its own: it forks, and pytest has threads.
    command = [sys.executable, "-m", "tests.unit.cluster.owner.many_starters"]
    done = subprocess.run(
        [*command, "--cases", "4", "--first", str(first)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cases" in done.stdout
