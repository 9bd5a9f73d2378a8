"""Processes that do tasks, and what becomes of those that do not."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.check.workers import Workers
from llada_sft.errors import DataError
from tests.signals import heed_ctrl_c

ROOT = Path(__file__).parents[3]


def build() -> int:
    return 100


def build_nothing() -> int:
    raise DataError("hook.py: cannot be read")


class Add:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, state: int) -> int:
        return state + self.number


def fail(_: int) -> int:
    raise DataError("a.jsonl: truncated")


def kill(_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def leave(_: int) -> int:
    os._exit(3)


def say(_: int) -> int:
    print("of the hook", flush=True)
    return 0


def test_every_task_is_done_once() -> None:
    with Workers(build, 2) as workers:
        for num_tasks in (0, 1, 9):
            done = dict(workers.run([Add(number) for number in range(num_tasks)]))
            assert done == {number: 100 + number for number in range(num_tasks)}
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (fail, "a.jsonl: truncated"),
        (
            kill,
            "a reading process was killed by SIGKILL; out of memory? "
            "use fewer processes:  taskset -c 0 llada-sft check ...",
        ),
        (leave, "a reading process ended by itself with exit code 3; does the hook end it?"),
    ],
)
def test_what_ends_a_process_is_one_line(task: Callable[[int], int], message: str) -> None:
    with Workers(build, 1) as workers, pytest.raises(DataError) as caught:
        dict(workers.run([Add(1), task, Add(2)]))
    assert str(caught.value) == message
    assert multiprocessing.active_children() == []


def test_a_state_that_cannot_be_built_is_the_error_of_the_beginning() -> None:
    with pytest.raises(DataError, match=r"^hook.py: cannot be read$"), Workers(build_nothing, 2):
        pass
    assert multiprocessing.active_children() == []


def test_what_a_hook_prints_is_not_in_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    with Workers(build, 1) as workers:
        assert dict(workers.run([say])) == {0: 0}
    assert capfd.readouterr() == ("", "of the hook\n")


SCRIPT = """
import os, sys, time
from llada_sft.check.workers import Workers
from llada_sft.entry import exit_code

def build():
    return None

def wait(_):
    os.write(1, b"at work ")
    time.sleep(60)

def command():
    with Workers(build, 2) as workers:
        dict(workers.run([wait, wait]))

if __name__ == "__main__":
    sys.exit(exit_code(command))
"""


def test_ctrl_c_ends_everything_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        assert process.stderr is not None
        expected = b"at work at work "
        assert process.stderr.read(len(expected)) == expected
        # As a terminal does it: to all processes at once.
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read() == b""
        assert process.wait(30) == 130
