"""Another Python process and a pipe to it: one way to start it, to hear of its end, and to end it.

What runs in it is the user's hook, which may block, print, or end its process. `check` reads rows
in several such processes, and a rank prepares its next steps in one.
"""

import multiprocessing
import signal
from collections.abc import Callable, Collection
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any


class PipedProcess:
    """A process that calls a function with its end of a pipe, and ends when that returns.

    It starts afresh: a fork would copy the locks of threads of a process that runs gloo and CUDA.

    Args:
        run: The function; picklable. What is sent through a pipe whose other end is closed raises
            a BrokenPipeError: the process then ends without output.
        ignored: Signals that are sent to all processes of a job or of a terminal, and that only
            this one acts on. It is safe from them from its first moment.

    Attributes:
        pipe: This process's end of the pipe.
    """

    def __init__(
        self, run: Callable[[Connection], None], ignored: Collection[signal.Signals]
    ) -> None:
        # Python starts this with the first process otherwise, and then unblocks TERM and INT.
        resource_tracker.ensure_running()
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(run, theirs, ignored), daemon=True)
        # It inherits what is blocked: it needs seconds until it can ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            # While a copy is open here, the end of the process would go unnoticed.
            theirs.close()

    def receive(self) -> Any:
        """Wait for what the process sends next, and return it.

        Raises:
            EOFError: The process has ended: `how_it_ended` says how.
        """
        try:
            return self.pipe.recv()
        except ConnectionResetError:
            raise EOFError from None

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def how_it_ended(self) -> str:
        """Wait for its end and describe it: "was killed by SIGKILL"."""
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended by itself with exit code {code}"

    def kill(self) -> None:
        """Kill the process, whatever it is doing; `join` waits until it is gone."""
        self._process.kill()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the process has ended.

        Args:
            timeout_s: How long. A process that hangs in a file system does not even die when it is
                killed.
        """
        self._process.join(timeout_s)


def _run(
    run: Callable[[Connection], None], pipe: Connection, ignored: Collection[signal.Signals]
) -> None:
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    try:
        run(pipe)
    except BrokenPipeError:
        return
