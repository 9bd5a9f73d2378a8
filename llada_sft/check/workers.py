"""Processes that do tasks: each builds its state once, then does one task after another.

Not an executor of the standard library: what is asked here is that Ctrl-C ends everything at once,
without output from any process, and that a process that is killed is one line that says so.
"""

import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from llada_sft.errors import DataError, LladaSftError
from llada_sft.processes import PipedProcess

State = TypeVar("State")
Result = TypeVar("Result")
# Each holds a tokenizer; a login node of hundreds of cores is not ours alone.
MAX_WORKERS = 32
# A terminal sends it to all processes; the parent ends its workers.
_CTRL_C = frozenset({signal.SIGINT})


def usable_cores() -> int:
    """Count the cores that this process may use, at most `MAX_WORKERS`."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


class Workers(Generic[State]):
    """A context in which tasks are done by other processes.

    Args:
        build_state: Called once in each process; picklable.
        num_workers: How many processes.

    Raises:
        LladaSftError: On entering: the state cannot be built.
    """

    def __init__(self, build_state: Callable[[], State], num_workers: int) -> None:
        self._build_state, self._num_workers = build_state, num_workers
        self._workers: dict[Connection, PipedProcess] = {}

    def __enter__(self) -> Self:
        # It would unblock INT if it started between two workers.
        resource_tracker.ensure_running()
        try:
            # Ctrl-C waits until all workers are known here.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _CTRL_C)
            try:
                for _ in range(self._num_workers):
                    worker = PipedProcess(partial(_work, self._build_state), _CTRL_C)
                    self._workers[worker.pipe] = worker
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for pipe in self._workers:
                self._receive(pipe)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kill()

    def run(self, tasks: Iterable[Callable[[State], Result]]) -> Iterator[tuple[int, Result]]:
        """Yield the number of each task and its result, in the order that they are done.

        Raises:
            LladaSftError: What a task raised, or a process has died.
        """
        waiting = iter(enumerate(tasks))
        busy: dict[Connection, int] = {}
        for pipe in self._workers:
            _give_next(pipe, waiting, busy)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                result = self._receive(ready)
                number = busy.pop(ready)
                _give_next(ready, waiting, busy)
                yield number, result

    def _receive(self, pipe: Connection) -> Any:
        try:
            result, problem = self._workers[pipe].receive()
        except EOFError:
            raise DataError(_death(self._workers[pipe])) from None
        if problem is not None:
            raise DataError(problem)
        return result

    def _kill(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        for pipe, worker in self._workers.items():
            worker.join()
            pipe.close()
        self._workers = {}


def _give_next(
    pipe: Connection,
    tasks: Iterator[tuple[int, Callable[[State], Result]]],
    busy: dict[Connection, int],
) -> None:
    for number, task in tasks:
        # If it died between two tasks, the receiver says so.
        with suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(task)
        busy[pipe] = number
        return


def _death(worker: PipedProcess) -> str:
    end = worker.how_it_ended()
    if end == "was killed by SIGKILL":
        end += "; out of memory? use fewer processes:  taskset -c 0 llada-sft check ..."
    elif "exit code" in end:
        end += "; does the hook end it?"
    return f"a reading process {end}"


def _work(build_state: Callable[[], State], pipe: Connection) -> None:
    # The user's hook may print; standard output is the report's.
    os.dup2(2, 1)
    # This process is killed at the end, with what it has not written yet.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        state = build_state()
        # What was imported stays: no need to look through it for garbage again and again.
        gc.freeze()
        pipe.send((None, None))
        while True:
            task = pipe.recv()
            pipe.send((task(state), None))
    except LladaSftError as error:
        pipe.send((None, str(error)))
    except EOFError:
        # The parent has gone.
        return
