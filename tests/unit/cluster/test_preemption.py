"""Signals set a flag; SLURM is asked whether to requeue (its answers as seen on 22.05.8)."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster.preemption import StopRequest, after_stop

FakeTool = Callable[[str, str], None]
PROLOGUE = """
import multiprocessing, os, signal, subprocess, sys, time
from llada_sft.cluster.preemption import StopRequest
stop = StopRequest()
stop.install()
assert not stop.requested
"""


def in_a_process(script: str) -> str:
    """Run a script after `install()`: signal handlers are of the whole process."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_sets_the_flag_and_nothing_else(name: str) -> None:
    script = f"os.kill(os.getpid(), signal.{name}); stop.wait(10); print(stop.requested)"
    assert in_a_process(script) == "True"


def test_cont_alone_means_nothing() -> None:
    assert in_a_process("os.kill(os.getpid(), signal.SIGCONT); print(stop.requested)") == "False"


def test_usr2_is_noted_while_a_thread_does_not_block_it() -> None:
    script = """
import threading
free = lambda: (signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2}), time.sleep(2))
threading.Thread(target=free, daemon=True).start()
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGUSR2)
stop.wait(10)
print(stop.requested)
"""
    assert in_a_process(script) == "True"


def test_children_outlive_usr2_and_end_on_term() -> None:
    script = """
children = [subprocess.Popen(["sleep", "60"])]
forked = os.fork()
if not forked:
    time.sleep(60)
for pid in (forked, children[0].pid):
    os.kill(pid, signal.SIGUSR2)
time.sleep(0.3)
print(children[0].poll(), os.waitpid(forked, os.WNOHANG)[0])
for pid in (forked, children[0].pid):
    os.kill(pid, signal.SIGTERM)
print(children[0].wait(10), os.WTERMSIG(os.waitpid(forked, 0)[1]))
"""
    assert in_a_process(script).split() == ["None", "0", "-15", "15"]


def test_term_is_taken_back_from_lightning() -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: print("a broadcast inside a handler"))
stop.claim_term()
os.kill(os.getpid(), signal.SIGTERM)
print(stop.requested)
"""
    assert in_a_process(script) == "True"


def told(*names: str) -> StopRequest:
    stop = StopRequest()
    stop.signals = {signal.Signals[name] for name in names}
    return stop


@pytest.fixture
def scontrol(tmp_path: Path, fake_tool: FakeTool) -> Callable[[str], Path]:
    def add(answer: str) -> Path:
        calls = tmp_path / "calls"
        fake_tool("scontrol", f'echo "$@" >> {calls}; {answer}')
        return calls

    return add


@pytest.mark.parametrize(
    ("signals", "preempt_time", "cause"),
    [
        (["SIGUSR2"], "None", "requeued after SIGUSR2"),
        (["SIGTERM"], "2026-11-05T10:00:00", "requeued after SIGTERM"),
        (["SIGTERM", "SIGUSR2"], "None", "requeued after SIGTERM and SIGUSR2"),
        (["SIGTERM"], "None", "cancelled"),
    ],
)
def test_slurm_taking_the_nodes_requeues_and_scancel_does_not(
    scontrol: Callable[[str], Path], signals: list[str], preempt_time: str, cause: str
) -> None:
    calls = scontrol(f"echo JobId=42 JobState=RUNNING PreemptTime={preempt_time} Requeue=1")
    assert after_stop(told(*signals), "42") == cause
    requeues = [line for line in calls.read_text().splitlines() if line == "requeue 42"]
    assert len(requeues) == (0 if cause == "cancelled" else 1)


def test_a_requeue_that_fails_is_said(scontrol: Callable[[str], Path]) -> None:
    scontrol("echo no such job >&2; exit 1")
    assert after_stop(told("SIGUSR2"), "42") == (
        "stopped by SIGUSR2, not requeued: scontrol requeue 42: no such job"
    )


def test_no_scontrol_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert after_stop(told("SIGUSR2"), "42") == (
        "stopped by SIGUSR2, not requeued: scontrol not found on this machine"
    )
