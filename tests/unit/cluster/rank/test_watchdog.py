"""The watchdog in processes that hang on purpose."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from llada_sft.cluster import failures, history, journal
from llada_sft.cluster.causes import HANG_EXIT_CODE, Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.owner import fence
from llada_sft.cluster.rank import stacks, watchdog
from llada_sft.cluster.rank.abort import FOLLOWED_EXIT_CODE
from llada_sft.cluster.rank.stacks import RankState
from llada_sft.cluster.rank.watchdog import Watchdog
from llada_sft.config.sections.train import TrainConfig
from llada_sft.errors import SupersededError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Phase

# A rank whose main thread does what `hang` says, once it has said so itself.
RANK = """
import os, re, signal, sys, time
from pathlib import Path
from llada_sft.cluster.rank import stacks, watchdog
from llada_sft.cluster.rank.abort import Leaving
from llada_sft.config.sections.train import TrainConfig
from llada_sft.errors import SupersededError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir

run, rank, hang = RunDir(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
world_size, timeout_s = map(int, sys.argv[4:])

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
    while not dog._ending:
        time.sleep(0.01)
    raise RuntimeError("a peer is gone")

def hears_no_call():
    stacks.is_called = lambda run, attempt: False
    time.sleep(1000)

def says_when_it_reports():
    while not dog._ending:
        time.sleep(0.01)
    print("reports", flush=True)
    time.sleep(1000)

watchdog._TICK_S, watchdog._TIMER_S, watchdog._OTHERS_S = 0.1, 1.0, 2.0
if hang == "says_when_it_reports":
    # There is no second rank; so long it is waited for.
    watchdog._OTHERS_S = watchdog._REPORT_S = 500.0
flags = []
signal.signal(signal.SIGTERM, lambda number, frame: flags.append(number))
leaving = Leaving(run, rank)
leaving.exit_when_a_peer_failed()
placement = Placement(rank, world_size, 0, 0, "", 0)
with watchdog.Watchdog(run, placement, f"node{rank}") as dog:
    leaving.answer_hang = dog.answer
    dog.set_timeouts(TrainConfig(hang_timeout_s=timeout_s, hang_grace_s=0))
    # Until the watchdog has looked once more, the time of the start counts.
    for _ in range(4):
        dog.pulse("step", 5)
        time.sleep(0.1)
    print("ready", flush=True)
    dog.pulse("step", 5)
    globals()[hang]()
"""
PLACEMENT = Placement(0, 1, 0, 0, "", 0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def start(
    run: RunDir, hang: str, rank: int = 0, world_size: int = 1, timeout_s: int = 1
) -> subprocess.Popen[str]:
    """Start a rank, and come back when it begins to hang."""
    numbers = [str(world_size), str(timeout_s)]
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(run.path), str(rank), hang, *numbers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@contextmanager
def killed_at_last(rank: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield rank
    finally:
        rank.kill()
        rank.communicate()


def test_a_rank_that_sleeps_is_ended_with_its_stack(run: RunDir) -> None:
    rank = start(run, "sleeps_for_ever")
    _, said = rank.communicate(timeout=60)
    assert rank.returncode == HANG_EXIT_CODE
    (failure,) = failures.read_all(run)
    assert (failure.rank, failure.node, failure.cause) == (0, "node0", "hang")
    assert (failure.step, failure.consequence) == (5, False)
    assert re.search(r"s in phase step: it is in <string>:\d+ sleeps_for_ever;", failure.error)
    assert said == failure.error + "\n"
    first, second, rest = run.rank_stacks(1, 0).read_text().split("\n", 2)
    assert first == "rank 0 of 1 on node0"
    header = json.loads(second)
    assert (header["phase"], header["step"], header["waits"]) == ("step", 5, False)
    assert header["seconds"] >= 1
    main = rest.split()[4]
    stack = rest.partition(f"Thread {main} (most recent call first):")[2]
    assert re.fullmatch(r'  File "<string>", line \d+ in sleeps_for_ever', stack.splitlines()[1])


@pytest.mark.slow
def test_c_code_that_holds_the_lock_is_ended_too(run: RunDir) -> None:
    rank = start(run, "matches_for_ever")
    rank.communicate(timeout=60)
    # It cannot choose its exit code, nor write any last words.
    assert rank.returncode == 1
    assert failures.read_all(run) == []
    text = run.rank_stacks(1, 0).read_text()
    assert text.splitlines()[1].startswith("Timeout")
    assert re.search(r'File "<string>", line \d+ in matches_for_ever', text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hang", "words"),
    [
        ("stops", "wrote no stack: stopped, or its node is gone"),
        (
            "matches_for_ever",
            r"is in __init__.py:\d+ match, in C code that holds Python's lock",
        ),
    ],
)
def test_the_failure_report_of_a_rank_that_cannot_write_is_written(
    run: RunDir, hang: str, words: str
) -> None:
    with killed_at_last(start(run, hang, rank=1, world_size=2)):
        other = start(run, "waits_for_others", rank=0, world_size=2)
        other.communicate(timeout=60)
        assert other.returncode == HANG_EXIT_CODE
        first, second = failures.read_all(run)
        assert (first.rank, second.rank) == (0, 1)
        assert (second.node, second.cause, second.step) == ("node1", "hang", None)
        assert re.search(rf"waiting for rank 1 \(node1\), which {words};", first.error)
        assert re.search(rf": it {words}; and the other ranks wait for it; see", second.error)
        assert (first.consequence, second.consequence) == (True, False)
        assert (first.witness, second.witness) == (None, 0)


STANDS = r"is in <string>:\d+ {}; and the other ranks wait for it;"


@pytest.mark.slow
def test_who_finds_the_hang_calls_the_others(run: RunDir) -> None:
    """The rank that is named would have found it much later."""
    late = start(run, "sleeps_for_ever", rank=1, world_size=2, timeout_s=30)
    with killed_at_last(late):
        first = start(run, "waits_for_others", rank=0, world_size=2)
        first.communicate(timeout=60)
        late.communicate(timeout=20)
        assert (first.returncode, late.returncode) == (HANG_EXIT_CODE, HANG_EXIT_CODE)
    waiting, named = failures.read_all(run)
    assert re.search(STANDS.format("sleeps_for_ever"), named.error)
    assert "waiting for rank 1 (node1), which is in <string>" in waiting.error
    assert (waiting.consequence, named.consequence, named.witness) == (True, False, None)


@pytest.mark.slow
def test_a_rank_that_missed_the_call_reports_when_the_first_has_left(run: RunDir) -> None:
    late = start(run, "hears_no_call", rank=1, world_size=2, timeout_s=500)
    with killed_at_last(late):
        first = start(run, "waits_for_others", rank=0, world_size=2)
        first.communicate(timeout=60)
        assert first.returncode == HANG_EXIT_CODE
        # Rank 0 could only say that rank 1 has said nothing; this is replaced.
        assert "wrote no stack" in failures.read_all(run)[1].error
        late.send_signal(signal.SIGTERM)
        late.communicate(timeout=60)
        assert late.returncode == HANG_EXIT_CODE
    named = failures.read_all(run)[1]
    assert re.search(STANDS.format("hears_no_call"), named.error)
    assert (named.cause, named.consequence, named.witness) == ("hang", False, None)


def test_term_in_the_middle_of_a_report_does_not_cut_it_off(run: RunDir) -> None:
    rank = start(run, "says_when_it_reports", rank=1, world_size=2)
    with killed_at_last(rank):
        assert rank.stdout
        assert rank.stdout.readline() == "reports\n"
        others = Failure(0, "node0", Cause.HANG, "waiting for rank 1", consequence=True)
        failures.write(run, others)
        rank.send_signal(signal.SIGTERM)
        # Nor does it wait on for stacks: who sent TERM will kill it soon.
        rank.communicate(timeout=60)
        assert rank.returncode == HANG_EXIT_CODE
    named = failures.read_all(run)[1]
    assert re.search(STANDS.format("says_when_it_reports"), named.error)


def test_term_after_another_failure_is_no_hang(run: RunDir) -> None:
    rank = start(run, "hears_no_call", rank=1, world_size=2, timeout_s=500)
    with killed_at_last(rank):
        failures.write(run, Failure(0, "node0", Cause.EXCEPTION, "KeyError: a"))
        rank.send_signal(signal.SIGTERM)
        rank.communicate(timeout=60)
        assert rank.returncode == FOLLOWED_EXIT_CODE
    own = failures.read_all(run)[1]
    assert (own.error, own.consequence) == ("another rank failed", True)


def test_stacks_are_read_when_they_are_whole(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """faulthandler writes the main thread last: before, another thread seems to be it."""
    own = RankState(0, "", "a.py:1 f", "step", 5, 1.0, in_collective=True)
    torn, whole = RankState(1, "", "watchdog.py:9 wait"), RankState(1, "", "hook.py:3 match")
    told = iter([RankState(1), torn, whole, whole])
    monkeypatch.setattr(watchdog, "_POLL_S_PER_RANK", 0.0)
    monkeypatch.setattr(stacks, "read_all", lambda *_: [own, next(told)])
    dog = Watchdog(run, Placement(0, 2, 0, 0, "", 0), "")
    assert dog._wait_for_others() == [own, whole]


@pytest.mark.slow
def test_a_file_system_that_does_not_answer_delays_nothing(run: RunDir) -> None:
    rank = start(run, "a_file_system_that_does_not_answer")
    rank.communicate(timeout=60)
    assert rank.returncode == HANG_EXIT_CODE
    assert failures.read_all(run) == []


@pytest.mark.slow
def test_a_peer_that_goes_first_does_not_hide_the_hang(run: RunDir) -> None:
    # There is no second rank: it is waited for, meanwhile the error comes.
    rank = start(run, "fails_while_it_is_reported", world_size=2)
    _, said = rank.communicate(timeout=60)
    assert rank.returncode == HANG_EXIT_CODE
    assert "a peer is gone" not in said
    assert {one.rank for one in failures.read_all(run)} == {0, 1}


@pytest.mark.slow
def test_a_rank_that_works_is_left_alone(run: RunDir) -> None:
    with Watchdog(run, PLACEMENT, "") as dog:
        dog.set_timeouts(TrainConfig(hang_timeout_s=1, hang_grace_s=60))
        for step in range(15):
            dog.pulse("step", step)
            time.sleep(0.1)
        assert run.rank_stacks(1, 0).read_text() == "rank 0 of 1\n"
        # A long phase is longer than a step may be.
        dog.pulse("checkpoint", 15)
        time.sleep(1.5)
    assert list(run.stacks.iterdir()) == []
    assert failures.read_all(run) == []


def test_the_start_has_the_default_time(run: RunDir) -> None:
    with Watchdog(run, PLACEMENT, "") as dog:
        assert 2690 < dog._left_s() <= 2700


LONG_PHASES = ("start", "checkpoint", "validation", "end")


@pytest.mark.parametrize("phase", get_args(Phase))
def test_only_a_long_phase_has_the_grace(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    watchdog = Watchdog(run, PLACEMENT, "")
    watchdog.set_timeouts(TrainConfig(hang_timeout_s=20, hang_grace_s=300))
    # Before the first pulse, too.
    assert watchdog._left_s() == 320
    watchdog.pulse(phase, 3)
    monkeypatch.setattr("time.monotonic", lambda: 1007.0)
    assert watchdog._left_s() == (313 if phase in LONG_PHASES else 13)


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
    assert said.startswith("watchdog: stacks are written here instead of to a file:")


def test_the_attempt_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert history.read(path).current_number == 1
    for attempt in (1, 2):
        journal.append(path, {"event": "started", "attempt": attempt})
        assert history.read(path).current_number == attempt


def test_a_rank_whose_run_is_anothers_by_now_reports_no_hang(tmp_path: Path) -> None:
    """It was stopped until another owner came: to itself it looks late."""

    def lost() -> None:
        raise SupersededError("lost")

    fence.put_up(tmp_path, lost)
    try:
        late = Watchdog(RunDir(tmp_path), Placement(0, 2, 0, 0, "", 0), "")
        with pytest.raises(SupersededError):
            late._report(time.monotonic() - 1000, "step", 3)
    finally:
        fence.take_down(tmp_path)
    assert list(tmp_path.iterdir()) == []
