"""A rank leaves at once, and follows another one that has left; each in a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.cluster import failures
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.leaving import last_line
from llada_sft.run_dir import RunDir

# As in a rank: TERM sets a flag. What follows stands for the training.
PROLOGUE = """
import ctypes, os, pathlib, signal, sys, time
from llada_sft.cluster.leaving import Leaving
from llada_sft.run_dir import RunDir
flags = []
signal.signal(signal.SIGTERM, lambda number, frame: flags.append(number))
leaving = Leaving(RunDir(pathlib.Path(sys.argv[1])), 0)
leaving.step = 7
leaving.follow_others()
print("ready", flush=True)
"""
WAIT = """
while not flags: time.sleep(0.01)
print("saves", flush=True)
time.sleep(60)
"""
# The main thread is inside C, where no handler of Python's runs.
STUCK = """
ctypes.CDLL(None).sleep(30)
ctypes.CDLL(None).sleep(30)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "failures").mkdir()
    return RunDir(tmp_path)


def start(run: RunDir, script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + script, str(run.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def another_left(run: RunDir) -> None:
    failures.write(run, Failure(1, "", Cause.EXCEPTION, "its own"))


@pytest.mark.parametrize("script", [WAIT, STUCK], ids=["in Python", "in C"])
def test_term_after_another_rank_left_ends_this_one(run: RunDir, script: str) -> None:
    with start(run, script) as rank:
        another_left(run)
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(100) == 143
    own = failures.read_all(run)[0]
    assert (own.rank, own.consequence, own.step) == (0, True, 7)
    assert own.error == "another rank failed"


def test_term_alone_lets_it_save_until_another_rank_leaves(run: RunDir) -> None:
    with start(run, WAIT) as rank:
        rank.send_signal(signal.SIGTERM)
        assert rank.stdout
        assert rank.stdout.readline() == "saves\n"
        # Its own last words do not count.
        failures.write(run, Failure(0, "", Cause.EXCEPTION, "its own"))
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(1)
        another_left(run)
        assert rank.wait(100) == 143


def test_without_term_a_failure_of_another_rank_is_not_its_own(run: RunDir) -> None:
    with start(run, "time.sleep(1)") as rank:
        another_left(run)
        assert rank.wait(100) == 0


def test_a_rank_leaves_without_a_clean_up(run: RunDir) -> None:
    script = """
import atexit, threading
atexit.register(time.sleep, 60)
threading.Thread(target=time.sleep, args=(60,)).start()
print("said before", end="")
try:
    raise ValueError("a\\nb")
except ValueError as error:
    leaving.fail(error)
"""
    with start(run, script) as rank:
        assert rank.wait(50) == 1
        assert rank.stdout
        assert rank.stderr
        # Not `communicate`, which leaves out what came together with "ready".
        output, errors = rank.stdout.read(), rank.stderr.read()
    assert output == "said before"
    (failure,) = failures.read_all(run)
    assert (failure.cause, failure.error, failure.step) == ("exception", "ValueError: a", 7)
    assert failure.traceback in errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (KeyError("a"), "KeyError: 'a'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_an_exception_in_one_line(error: Exception, line: str) -> None:
    assert last_line(error) == line
