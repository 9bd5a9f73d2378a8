"""An owner that was stopped, taken for dead and continued: it changes nothing any more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.owner import claim, owner_files
from llada_sft.config import load_config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir
from tests.unit.cluster.owner.many_starters import RANK

# A launcher of another host, as the others see it.
ELSEWHERE = """
import socket, sys
from pathlib import Path
from llada_sft.cluster.launch import local
from llada_sft.cluster.owner import identity
from llada_sft.config import load_config
from llada_sft.entry import exit_code
socket.gethostname = lambda: "elsewhere"
identity._BOOT_ID = Path("boot_id")
run = Path(sys.argv[1])
sys.exit(exit_code(lambda: local.run_local(run, load_config(run / "config.yaml"), sys.argv[2:])))
"""


@pytest.fixture
def run(project: Path) -> RunDir:
    (project / "boot_id").write_text("other\n")
    config = load_config("a.yaml", ["slurm.ranks_per_node=1", "run.owner_timeout_s=5"])
    return prepare.create(config, project, [])[0]


@pytest.fixture
def first(run: RunDir, project: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a local run whose rank makes a step every 20 ms, without an end."""
    rank = [sys.executable, "-c", RANK, str(project / "trained"), "1000000", "0.02"]
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, str(run.path), *rank],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        yield launcher
        for pid in (launcher.pid, *children(launcher.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except FileNotFoundError:
        return []


def wait_for_steps(run: RunDir, launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (run.checkpoints / "step_3").exists():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(run: RunDir) -> dict[Path, tuple[bytes, int]]:
    """All files but the first owner's own log, and when each was changed."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.path.rglob("*")
        if path.is_file() and path != run.rank_log(0)
    }


@pytest.mark.slow
def test_a_stopped_owner_is_taken_over_and_changes_nothing_when_it_goes_on(
    run: RunDir, first: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for_steps(run, first)
    with pytest.raises(LaunchError, match=f"is trained by process {first.pid} on host elsewhere"):
        claim.claim(run, claim.this_process("training"))
    stopped = [first.pid, *children(first.pid)]
    assert len(stopped) == 2
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    # As if it had been stopped for longer.
    number = owner_files.highest(run.path)
    os.utime(run.path / f"owner.{number}", (0, 0))
    with claim.hold(run, "training") as second:
        journal.append(run.journal, {"event": "started", "attempt": 2})
        (run.checkpoints / "latest").write_text("of the second\n")
        # Its own signs of life are changes, too.
        second.let_go()
        before = contents(run)
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
        _, errors = first.communicate(timeout=120)
        assert contents(run) == before
    line = (
        f"run {run.path} was taken over by process {os.getpid()} on host {second.owner.host}"
        f" since {second.owner.since}: leaving, nothing more is written\n"
    )
    assert (first.returncode, errors) == (2, line)
    # Rank 0 has said it too, to its own log, unless the launcher was first.
    assert run.rank_log(0).read_text() in ("", line)
    assert "has given no sign for" in capsys.readouterr().err


def test_ranks_end_with_a_launcher_that_was_killed(
    run: RunDir, first: subprocess.Popen[str]
) -> None:
    wait_for_steps(run, first)
    (rank,) = children(first.pid)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{rank}").exists() and " Z " not in Path(f"/proc/{rank}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
