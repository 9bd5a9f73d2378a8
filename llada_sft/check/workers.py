"""Processes that do tasks: each builds its state once, then does one task after another.

Not an executor of the standard library: what is asked here is that Ctrl-C ends everything at once,
without output from any process, and that a process that is killed is one line that says so.
"""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from llada_sft.errors import DataError, LladaSftError

State = TypeVar("State")
Result = TypeVar("Result")
# Each holds a tokenizer; a login node of hundreds of cores is not ours alone.
MAX_WORKERS = 32


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
        self._processes: dict[Connection, SpawnProcess] = {}

    def __enter__(self) -> Self:
        # Python starts this with the first worker otherwise, and then lets SIGINT through again.
        resource_tracker.ensure_running()
        try:
            # Workers inherit this: Ctrl-C is for the parent, which then ends them.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                for _ in range(self._num_workers):
                    self._start()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for pipe in self._processes:
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
        for pipe in self._processes:
            _give_next(pipe, waiting, busy)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                result = self._receive(ready)
                number = busy.pop(ready)
                _give_next(ready, waiting, busy)
                yield number, result

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = multiprocessing.Pipe()
        process = spawn.Process(target=_work, args=(theirs, self._build_state), daemon=True)
        process.start()
        # While a copy is open here, the end of the process would go unnoticed.
        theirs.close()
        self._processes[ours] = process

    def _receive(self, pipe: Connection) -> Any:
        try:
            result, problem = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise DataError(_died(self._processes[pipe])) from None
        if problem is not None:
            raise DataError(problem)
        return result

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()
        for pipe, process in self._processes.items():
            process.join()
            pipe.close()
        self._processes = {}


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


def _died(process: SpawnProcess) -> str:
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"a reading process ended by itself with exit code {code}; does the hook end it?"
    name = signal.Signals(-code).name
    advice = "; out of memory? use fewer processes:  taskset -c 0 llada-sft check ..."
    return f"a reading process was killed by {name}{advice if name == 'SIGKILL' else ''}"


def _work(pipe: Connection, build_state: Callable[[], State]) -> None:
    # The user's hook may print; standard output is the report's.
    os.dup2(2, 1)
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
    except (EOFError, BrokenPipeError):
        # The parent has gone.
        return
