"""Signals set a flag and do nothing else, and nobody but us handles them."""

import subprocess
import sys

import pytest

PROLOGUE = """
import multiprocessing, os, signal, subprocess, sys, time
from llada_sft.cluster.rank.signals import StopRequest
stop = StopRequest()
stop.install()
assert not stop.requested

def wait(*names):
    deadline = time.monotonic() + 30
    while not set(names) <= set(stop.names()):
        assert time.monotonic() < deadline, stop.names()
        time.sleep(0.01)
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
    script = f"os.kill(os.getpid(), signal.{name}); wait('{name}'); print(stop.requested)"
    assert in_a_process(script) == "True"


def test_cont_alone_means_nothing() -> None:
    assert in_a_process("os.kill(os.getpid(), signal.SIGCONT); print(stop.requested)") == "False"


def test_more_signals_do_not_disturb_a_slow_save() -> None:
    """USR2 begins it; TERM, USR2 and TERM again come while another process and we both write."""
    script = """
import tempfile
from pathlib import Path
os.kill(os.getpid(), signal.SIGUSR2)
wait("SIGUSR2")
shard = Path(tempfile.mkdtemp()) / "shard"
sender = f"for s in TERM USR2 TERM; do sleep 0.2; kill -$s {os.getpid()}; done"
other = subprocess.Popen(["sh", "-c", sender])
with shard.open("wb") as file:
    for part in range(100):
        file.write(bytes([part]) * 100_000)
        file.flush()
        os.fsync(file.fileno())
        time.sleep(0.01)
other.wait()
wait("SIGTERM")
print(shard.read_bytes() == b"".join(bytes([part]) * 100_000 for part in range(100)))
print(*stop.names())
"""
    assert in_a_process(script).split() == ["True", "SIGTERM", "SIGUSR2"]


def test_usr2_is_noted_while_a_thread_does_not_block_it() -> None:
    script = """
import threading
free = lambda: (signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2}), time.sleep(2))
threading.Thread(target=free, daemon=True).start()
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGUSR2)
wait("SIGUSR2")
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


def test_all_of_the_jobs_signals_are_ours() -> None:
    ours = "llada_sft.cluster.rank.signals"
    assert in_a_process("print(stop.claim())") == (
        f"signals: SIGUSR1 default, SIGUSR2 {ours}, SIGTERM {ours}"
    )


def test_term_is_taken_back_from_lightning() -> None:
    # tests/unit/training/callbacks/test_signals.py runs Lightning itself.
    script = """
def theirs(*_): print("a broadcast inside a handler")
theirs.__module__ = "lightning.pytorch.trainer.connectors.signal_connector"
signal.signal(signal.SIGTERM, theirs)
stop.claim()
os.kill(os.getpid(), signal.SIGTERM)
wait("SIGTERM")
print(stop.requested)
"""
    assert in_a_process(script) == "True"


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_handler_of_somebody_else_is_named(name: str) -> None:
    script = f"""
def theirs(*_): ...
theirs.__module__ = "wandb.sdk"
signal.signal(signal.{name}, theirs)
try:
    stop.claim()
except Exception as error:
    print(type(error).__name__, error)
"""
    assert in_a_process(script) == (
        f"LaunchError signals: {name}: handled by wandb.sdk, and the job needs it to save and stop"
        " in time: remove that handler from the hook, or from the library that sets it"
    )
