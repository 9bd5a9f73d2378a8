"""How a rank that cannot continue exits: it writes its failure report, and skips the clean-up.

A clean-up could wait forever. Lightning's moves the network off the GPU, behind collectives that
the other ranks will never join; NCCL's and gloo's wait for their peers. What was not saved before
is lost anyway: the next attempt resumes from the last checkpoint.

Ranks still waiting for one that has exited receive SIGTERM: from `srun --kill-on-bad-exit`, from
SLURM itself (since 26.05), or from the launcher of a local run. SIGTERM alone means "save and
stop"; SIGTERM when another rank has left a failure report, or leaves one seconds later, means "exit
now". If that report is of a hang, a rank first reports where it is itself (`Watchdog.answer`).
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from llada_sft.cluster import failures
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.peers import is_of_peer
from llada_sft.errors import NodeError, SupersededError
from llada_sft.run_dir import RunDir

EXCEPTION_EXIT_CODE = 1
# How long an interpreter may take to shut down once its rank is done.
EXIT_S = 30.0
FOLLOWED_EXIT_CODE = 128 + signal.SIGTERM
POLL_S = 0.2


class Leaving:
    """Ends this rank's process when this rank or another one cannot continue.

    Args:
        run: The run directory.
        rank: This rank.
    """

    def __init__(self, run: RunDir, rank: int) -> None:
        self._run, self._rank = run, rank
        self._node = os.environ.get("SLURMD_NODENAME", "")
        self._lock = threading.Lock()
        # The number of optimizer steps that were made; None before the training starts.
        self.step: int | None = None
        # If another rank reported a hang: reports where this rank is, and does not return.
        self.answer_hang: Callable[[], None] = lambda: None

    def report_failure(
        self, cause: Cause, error: str, traceback: str = "", consequence: bool = False
    ) -> None:
        """Write this rank's failure report; no error is raised if it cannot be written."""
        failure = Failure(
            rank=self._rank,
            node=self._node,
            cause=cause,
            error=error,
            step=self.step,
            traceback=traceback,
            consequence=consequence,
            time=time.time(),
        )
        self._write(failure)

    def _write(self, failure: Failure) -> None:
        try:
            failures.write(self._run, failure)
        except OSError as problem:
            path = self._run.failure(failure.rank)
            print(f"{path}: cannot be written: {problem.strerror}", file=sys.stderr, flush=True)
        except SupersededError as problem:
            # Another owner's run is not written to, not even with a report.
            print(problem, file=sys.stderr, flush=True)

    def report_node(self, error: NodeError) -> None:
        """Write the failure report of a node's first rank, as its witness."""
        failure = Failure(
            rank=error.rank,
            node=error.node,
            cause=Cause.NODE_FAILURE,
            error=str(error),
            time=time.time(),
            witness=self._rank,
        )
        self._write(failure)

    def abort(self, error: Exception) -> None:
        """Report an exception, and exit; does not return."""
        with self._lock:
            text = "".join(traceback.format_exception(error))
            print(text, file=sys.stderr, flush=True)
            consequence = is_of_peer(error) or self._a_peer_failed()
            self.report_failure(Cause.EXCEPTION, last_line(error), text, consequence)
            _exit(EXCEPTION_EXIT_CODE)

    def exit_when_a_peer_failed(self) -> None:
        """Exit at once on TERM if another rank has failed; must be called in the main thread.

        A separate thread exits: the main thread may be waiting inside NCCL, where Python's signal
        handlers do not run. The write of the signal's number to the wake-up socket runs there, too.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # Detached, so that it stays open as long as the process lives.
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        threading.Thread(
            target=self._wait_for_failure, args=(reader,), name="peer-failure", daemon=True
        ).start()

    def _wait_for_failure(self, reader: socket.socket) -> None:
        while signal.SIGTERM not in reader.recv(64):
            continue
        while not self._a_peer_failed():
            time.sleep(POLL_S)
        self.answer_hang()
        # The lock: a failure report that this rank is writing itself must be completed.
        with self._lock:
            self.report_failure(Cause.EXCEPTION, "another rank failed", consequence=True)
            _exit(FOLLOWED_EXIT_CODE)

    def _a_peer_failed(self) -> bool:
        return any(
            failure.rank != self._rank or failure.witness is not None
            for failure in failures.read_all(self._run)
        )


def exit_in_time(code: int) -> None:
    """End this process with its exit code even if the interpreter cannot shut down.

    The interpreter waits for the threads and child processes of libraries and hooks: forever, if
    one of them hangs in a file system. At that point nothing can be lost.
    """

    def end() -> None:
        # Returns as soon as the interpreter starts to shut down.
        threading.main_thread().join()
        time.sleep(EXIT_S)
        # Not `print`: the main thread may hold the lock of the stream.
        os.write(2, f"still not shut down after {EXIT_S:g} s: exiting\n".encode())
        os._exit(code)

    threading.Thread(target=end, name="exit-in-time", daemon=True).start()


def last_line(error: BaseException) -> str:
    """Return an exception in one line: its type and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
