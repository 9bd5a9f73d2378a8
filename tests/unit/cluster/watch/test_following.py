"""The line at the bottom of a terminal while a log is followed."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.rank.phases import RankPhase, record_phase
from llada_sft.cluster.watch.following import live_text
from llada_sft.run_dir import RunDir
from tests.unit.cluster.watch.test_all_runs import LAUNCHED, SAVED, STARTED, make_run

FakeTool = Callable[[str, str], None]


def test_what_the_line_says(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", LAUNCHED, STARTED, SAVED, job="42")
    waits = {"42": {"JobState": "PENDING", "Reason": "Resources", "StartTime": "Unknown"}}
    assert live_text(run, waits) == "pending: Resources; start: no estimate yet"
    running = {"42": {"JobState": "RUNNING"}}
    assert live_text(run, running) == "starting: waiting for its ranks to start"
    record_phase(run, RankPhase(0, 1, "training", since=time.time()))
    assert live_text(run, running) == (
        "running: step 20 of 120, loss 2.25, lr 0.001, 500 tokens/s, about 0:00:20 left"
    )
    run.journal.unlink()
    run.journal.symlink_to("nowhere")
    assert live_text(run, running) == ""


FOLLOW = """
import sys
from llada_sft.cluster.watch import logs
from llada_sft.cluster.watch.find_run import find_run
sys.exit(logs.follow(find_run(sys.argv[1]), logs.Wanted(tail=1), ask_every_s=0.1))
"""


def test_the_line_is_at_the_bottom_of_a_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", LAUNCHED, STARTED, SAVED)
    record_phase(run, RankPhase(0, 1, "training", since=time.time()))
    run.rank_log(0).write_text("first\nsecond\n")
    reader, writer = pty.openpty()
    follower = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(run.path)],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "60"},
    )
    os.close(writer)
    try:
        seen = read_until(reader, b"running: step 20 of 120")
        assert seen.startswith(b"second\r\n\r\x1b[Krunning: step 20 of 120")
        with run.rank_log(0).open("a") as log:
            log.write("half a ")
        seen = read_until(reader, b"half a ")
        # The line is removed first, and does not come back in the middle of a line.
        assert seen.endswith(b"\r\x1b[Khalf a ")
        with run.rank_log(0).open("a") as log:
            log.write("line\n")
        assert read_until(reader, b"\x1b[Krunning").startswith(b"line\r\n")
        journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": "finished"})
        end = read_until(reader, b"next ")
        assert b"\r\x1b[Kended        finished (exit code 0)\r\n" in end
        assert follower.wait(timeout=60) == 0
    finally:
        follower.kill()
        follower.wait()
        os.close(reader)


def read_until(terminal: int, text: bytes) -> bytes:
    """Return what a terminal shows, up to and with a text."""
    seen = b""
    while text not in seen:
        piece = os.read(terminal, 1)
        assert piece, seen
        seen += piece
    return seen


@pytest.mark.parametrize("file", ["journal.jsonl", "logs/metrics.csv", "phases"])
def test_files_that_vanish(tmp_path: Path, file: str) -> None:
    run: RunDir = make_run(tmp_path, "a", LAUNCHED, STARTED, SAVED)
    path = run.path / file
    if path.exists():
        path.unlink()
    assert live_text(run, {}).split(":")[0] in ("starting", "prepared", "running")
