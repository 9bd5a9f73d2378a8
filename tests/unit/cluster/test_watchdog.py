"""The watchdog in processes that hang on purpose."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llada_sft.cluster import failures, journal
from llada_sft.cluster.causes import HANG_EXIT_CODE
from llada_sft.cluster.watchdog import Watchdog
from llada_sft.config.schema import TrainConfig
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir

# A rank whose main thread does what `hang` says.
RANK = """
import os, re, sys, time
from pathlib import Path
from llada_sft.cluster import watchdog
from llada_sft.config.schema import TrainConfig
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir

run, rank, hang = RunDir(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
world_size = int(sys.argv[4])

def sleeps_for_ever():
    time.sleep(1000)

def matches_for_ever():
    # Of the order of 2 ** 60 steps, all of them in C.
    re.match(r"(a|a)*b", "a" * 60)

def waits_for_others():
    exec("import time; time.sleep(1000)", {"__name__": "torch.distributed.c10d"})

def stops():
    os.kill(os.getpid(), 19)

def a_file_system_that_does_not_answer():
    watchdog._write = lambda file, text: time.sleep(1000)
    watchdog._REPORT_S = 1.0
    time.sleep(1000)

def fails_while_it_is_reported():
    time.sleep(1.5)
    raise RuntimeError("a peer is gone")

watchdog._OTHERS_S = 6.0
placement = Placement(rank, world_size, 0, 0, "", 0)
with watchdog.Watchdog(run, placement, f"node{rank}") as dog:
    dog.set_timeouts(TrainConfig(hang_timeout_s=1, hang_grace_s=0))
    # Until the watchdog has looked once more, the time of the start counts.
    for _ in range(20):
        dog.pulse("step", 5)
        time.sleep(0.1)
    globals()[hang]()
"""
PLACEMENT = Placement(0, 1, 0, 0, "", 0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def start(run: RunDir, hang: str, rank: int = 0, world_size: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RANK, str(run.path), str(rank), hang, str(world_size)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_rank_that_sleeps_is_ended_with_its_stack(run: RunDir) -> None:
    rank = start(run, "sleeps_for_ever")
    _, said = rank.communicate(timeout=60)
    assert rank.returncode == HANG_EXIT_CODE
    (failure,) = failures.read_all(run)
    assert (failure.rank, failure.node, failure.cause) == (0, "node0", "hang")
    assert (failure.step, failure.consequence) == (5, False)
    assert re.search(r"s in phase step: it stands in <string>:\d+ sleeps_for_ever;", failure.error)
    assert said == failure.error + "\n"
    first, second, rest = run.rank_stacks(1, 0).read_text().split("\n", 2)
    assert first == "rank 0 of 1 on node0"
    header = json.loads(second)
    assert (header["phase"], header["step"], header["waits"]) == ("step", 5, False)
    assert header["seconds"] >= 1
    main = rest.split()[4]
    stack = rest.partition(f"Thread {main} (most recent call first):")[2]
    assert re.fullmatch(r'  File "<string>", line \d+ in sleeps_for_ever', stack.splitlines()[1])


def test_c_code_that_holds_the_lock_is_ended_too(run: RunDir) -> None:
    rank = start(run, "matches_for_ever")
    rank.communicate(timeout=60)
    # It cannot choose its exit code, nor write any last words.
    assert rank.returncode == 1
    assert failures.read_all(run) == []
    text = run.rank_stacks(1, 0).read_text()
    assert text.splitlines()[1].startswith("Timeout")
    assert re.search(r'File "<string>", line \d+ in matches_for_ever', text)


@pytest.mark.parametrize(
    ("hang", "words"),
    [
        ("stops", "wrote no stack: stopped, or its node is gone"),
        (
            "matches_for_ever",
            r"stands in __init__.py:\d+ match, in C code that holds Python's lock",
        ),
    ],
)
def test_a_rank_that_cannot_speak_has_its_last_words_written(
    run: RunDir, hang: str, words: str
) -> None:
    mute = start(run, hang, rank=1, world_size=2)
    other = start(run, "waits_for_others", rank=0, world_size=2)
    try:
        other.communicate(timeout=60)
        assert other.returncode == HANG_EXIT_CODE
        first, second = failures.read_all(run)
        assert (first.rank, second.rank) == (0, 1)
        assert (second.node, second.cause, second.step) == ("node1", "hang", None)
        assert re.search(rf"waiting for rank 1 \(node1\), which {words};", first.error)
        assert re.search(rf": it {words}; and the other ranks wait for it; see", second.error)
        assert (first.consequence, second.consequence) == (True, False)
    finally:
        mute.kill()
        mute.communicate()


def test_a_file_system_that_does_not_answer_delays_nothing(run: RunDir) -> None:
    rank = start(run, "a_file_system_that_does_not_answer")
    rank.communicate(timeout=60)
    assert rank.returncode == HANG_EXIT_CODE
    assert failures.read_all(run) == []


def test_a_peer_that_goes_first_does_not_hide_the_hang(run: RunDir) -> None:
    # There is no second rank: it is waited for, meanwhile the error comes.
    rank = start(run, "fails_while_it_is_reported", world_size=2)
    _, said = rank.communicate(timeout=60)
    assert rank.returncode == HANG_EXIT_CODE
    assert "a peer is gone" not in said
    assert {one.rank for one in failures.read_all(run)} == {0, 1}


def test_a_rank_that_works_is_left_alone(run: RunDir) -> None:
    with Watchdog(run, PLACEMENT, "") as watchdog:
        watchdog.set_timeouts(TrainConfig(hang_timeout_s=1, hang_grace_s=60))
        for step in range(15):
            watchdog.pulse("step", step)
            time.sleep(0.1)
        assert run.rank_stacks(1, 0).read_text() == "rank 0 of 1\n"
        # A long phase is longer than a step may be.
        watchdog.pulse("checkpoint", 15)
        time.sleep(1.5)
    assert list(run.stacks.iterdir()) == []
    assert failures.read_all(run) == []


def test_the_start_has_the_default_time(run: RunDir) -> None:
    with Watchdog(run, PLACEMENT, "") as watchdog:
        assert 2690 < watchdog._left_s() <= 2700


def test_a_folder_that_cannot_be_written_is_said(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    run.stacks.write_text("not a folder")
    with Watchdog(run, PLACEMENT, ""):
        deadline = time.monotonic() + 30
        said = ""
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
            said = capfd.readouterr().err
    assert said.startswith("watchdog: stacks would go here, not to a file:")


def test_the_attempt_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert journal.current_attempt(path) == 1
    for attempt in (1, 2):
        journal.append(path, {"event": "started", "attempt": attempt})
        assert journal.current_attempt(path) == attempt
