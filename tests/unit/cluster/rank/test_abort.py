"""A rank leaves at once, and follows another one that has left; each in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.cluster import failures
from llada_sft.cluster.attempt.verdict import Evidence, judge, read_srun
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.peers import is_of_peer
from llada_sft.cluster.rank import abort
from llada_sft.cluster.rank.abort import Leaving, last_line
from llada_sft.run_dir import RunDir

# As in a rank: TERM sets a flag. What follows stands for the training.
PROLOGUE = """
import ctypes, os, pathlib, signal, sys, time
from llada_sft.cluster.rank.abort import Leaving
from llada_sft.run_dir import RunDir
flags = []
signal.signal(signal.SIGTERM, lambda number, frame: flags.append(number))
leaving = Leaving(RunDir(pathlib.Path(sys.argv[1])), 0)
leaving.step = 7
leaving.exit_when_a_peer_failed()
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


def test_term_after_another_rank_reported_this_one_ends_it(run: RunDir) -> None:
    """As the preflight does where this rank does not answer."""
    with start(run, WAIT) as rank:
        failures.write(run, Failure(0, "node1", Cause.NODE_FAILURE, "no answer", witness=1))
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(100) == 143
    (report,) = failures.read_all(run)
    assert (report.cause, report.witness) == ("node failure", 1)


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


SIBLINGS = """
srun: error: node1: task {failed}: {how}
srun: error: node1: task {other}: Exited with exit code 143
"""


@pytest.mark.parametrize("when", ["before", "after"], ids=["reported before", "reported after"])
@pytest.mark.parametrize("script", [WAIT, STUCK], ids=["in Python", "in C"])
def test_slurm_tells_the_siblings_of_a_failed_rank_to_leave(
    run: RunDir, when: str, script: str
) -> None:
    """SLURM 26.05 sends CONT and TERM to them, which is not a preemption.

    No such SLURM can be installed here: a stub sends its signals, and srun's words are written from
    its documentation.
    """
    report = Failure(1, "node1", Cause.EXCEPTION, "KeyError: a", 7, time=1.0)
    with start(run, script) as rank:
        if when == "before":
            failures.write(run, report)
        rank.send_signal(signal.SIGCONT)
        rank.send_signal(signal.SIGTERM)
        if when == "after":
            if script == WAIT:
                assert rank.stdout
                # It takes this for a signal to save and stop, as far as it knows.
                assert rank.stdout.readline() == "saves\n"
            failures.write(run, report)
        assert rank.wait(100) == 143
    srun = SIBLINGS.format(failed=1, how="Exited with exit code 1", other=0)
    deaths, _ = read_srun(srun)
    evidence = Evidence(1, failures.read_all(run), deaths, nodes=["node1"], world_size=2)
    verdict = judge(evidence)
    assert (verdict.cause, verdict.rank, verdict.error) == (Cause.EXCEPTION, 1, "KeyError: a")


def test_a_torn_report_of_another_rank_does_not_keep_it_from_saving(run: RunDir) -> None:
    run.failure(1).write_text("{")
    with start(run, WAIT) as rank:
        rank.send_signal(signal.SIGTERM)
        assert rank.stdout
        assert rank.stdout.readline() == "saves\n"
        assert rank.poll() is None
        rank.kill()
        rank.wait(100)
    assert failures.read_all(run) == []


@pytest.mark.parametrize("leaves", ["by an exception", "after another"])
def test_a_rank_leaves_also_where_it_may_not_write(run: RunDir, leaves: str) -> None:
    """Another owner has taken the run over."""
    script = """
from llada_sft.cluster import failures
from llada_sft.errors import SupersededError
def refuse(*_):
    raise SupersededError("run a is trained by job 2")
failures.write = refuse
print("refused", flush=True)
"""
    if leaves == "by an exception":
        with start(run, script + 'leaving.abort(ValueError("a"))') as rank:
            assert rank.wait(100) == 1
    else:
        with start(run, script + WAIT) as rank:
            assert rank.stdout
            assert rank.stdout.readline() == "refused\n"
            another_left(run)
            rank.send_signal(signal.SIGTERM)
            assert rank.wait(100) == 143
    assert not run.failure(0).exists()


BUSY = """
import atexit, threading
from llada_sft.cluster.rank import abort as module
module.EXIT_S = 0.2
{hold}
module.exit_in_time(2)
raise SystemExit(2)
"""


@pytest.mark.parametrize(
    "hold",
    [
        "",
        "threading.Thread(target=time.sleep, args=(500,)).start()",
        "atexit.register(time.sleep, 500)",
        # As multiprocessing does for each child that is left.
        "atexit.register(os.waitpid, os.posix_spawn('/bin/sleep', ['sleep', '30'], {}), 0)",
    ],
    ids=["nothing", "a thread", "a handler", "a child"],
)
def test_a_rank_that_is_done_exits_in_time_with_its_code(run: RunDir, hold: str) -> None:
    with start(run, BUSY.format(hold=hold)) as rank:
        assert rank.wait(20) == 2
        assert rank.stderr
        said = "still not shut down after 0.2 s: exiting\n"
        assert (said in os.read(rank.stderr.fileno(), 1000).decode()) is (hold != "")


@pytest.mark.parametrize(
    ("error", "of_peer"),
    [
        (
            RuntimeError("[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"),
            True,
        ),
        (RuntimeError("[unbound_buffer.cc:81] Timed out waiting 10ms for send operation"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"), True),
        (
            RuntimeError("Some NCCL operations have failed or timed out. Due to the asynchronous"),
            True,
        ),
        (RuntimeError("wait timeout after 300000ms, keys: /default_pg/0//cpu//0/0"), True),
        (
            RuntimeError("Timed out after 601 seconds waiting for clients. 1/2 clients joined."),
            True,
        ),
        (RuntimeError("The client socket has timed out after 600000ms while trying to"), True),
        (RuntimeError("Connection closed by peer [127.0.0.1]:4321"), True),
        (RuntimeError("Failed to recv, got 0 bytes. Connection was likely closed. Did"), True),
        (RuntimeError("NCCL communicator was aborted on rank 0."), True),
        (RuntimeError("the service timed out after 5 s"), False),
        (ConnectionResetError("Connection reset by peer"), False),
        (TimeoutError("Timed out waiting 10ms for a lock"), False),
        (ValueError("a"), False),
    ],
)
def test_what_a_collective_says_of_a_peer_is_a_consequence(error: Exception, of_peer: bool) -> None:
    assert is_of_peer(error) is of_peer


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
    leaving.abort(error)
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


@pytest.mark.parametrize(
    ("others", "error", "consequence"),
    [
        ([], KeyError("a"), False),
        ([], RuntimeError("Connection closed by peer [10.0.0.1]:29500"), True),
        # Whatever it raises once another rank has left may follow from that.
        ([1], KeyError("a"), True),
        ([1], RuntimeError("Connection closed by peer [10.0.0.1]:29500"), True),
    ],
)
def test_what_a_rank_raises_after_another_has_left_is_a_consequence(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    others: list[int],
    error: Exception,
    consequence: bool,
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(abort, "_exit", codes.append)
    for rank in others:
        failures.write(run, Failure(rank, "", Cause.EXCEPTION, "its own"))
    Leaving(run, 0).abort(error)
    assert codes == [1]
    assert failures.read_all(run)[0].consequence is consequence
