"""How a rank that cannot go on leaves: its last words on disk, then gone, without a clean-up.

A clean-up could wait for ever. Lightning's moves the network off the GPU, behind collectives that
the other ranks will never join; NCCL's and gloo's wait for their peers. What was not said before is
lost anyway: the next attempt goes on from the last checkpoint.

Who waits for a rank that has left is told by TERM (`srun --kill-on-bad-exit`, or the launcher of a
local run). TERM alone means "save and stop"; with another rank's last words there it means "leave".
"""

import os
import re
import signal
import socket
import sys
import threading
import time
import traceback

from llada_sft.cluster import failures
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.run_dir import RunDir

EXCEPTION_EXIT_CODE = 1
FOLLOWED_EXIT_CODE = 128 + signal.SIGTERM
POLL_S = 0.2
# What gloo, NCCL and their store say when the process at the other end is gone.
_PEER_IS_GONE = re.compile(
    r"Connection (?:was )?(?:closed|reset|refused)|Broken pipe|recvValue|sendBytes"
    r"|ncclRemoteError|remote process exited"
)


class Leaving:
    """Ends this rank's process when it, or another rank, cannot go on.

    Args:
        run: The run directory.
        rank: This rank.
    """

    def __init__(self, run: RunDir, rank: int) -> None:
        self._run, self._rank = run, rank
        self._node = os.environ.get("SLURMD_NODENAME", "")
        self._lock = threading.Lock()
        # Optimizer steps that were made; None before the training begins.
        self.step: int | None = None

    def say(self, cause: Cause, error: str, traceback: str = "", consequence: bool = False) -> None:
        """Leave this rank's last words for who judges the attempt."""
        failures.write(
            self._run,
            Failure(
                self._rank,
                self._node,
                cause,
                error,
                self.step,
                traceback,
                consequence,
                time.time(),
            ),
        )

    def fail(self, error: Exception) -> None:
        """Leave with an exception; does not return."""
        with self._lock:
            text = "".join(traceback.format_exception(error))
            print(text, file=sys.stderr, flush=True)
            consequence = is_of_peer(error) or self._others_left()
            self.say(Cause.EXCEPTION, last_line(error), text, consequence)
            _exit(EXCEPTION_EXIT_CODE)

    def follow_others(self) -> None:
        """Leave at once on TERM if another rank has left; to be called in the main thread.

        A thread does it: the main thread may be waiting inside NCCL, where no handler of Python's
        runs. What runs there too is the write of the signal's number to the wake-up socket.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # Detached: open as long as the process.
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        threading.Thread(
            target=self._follow, args=(reader,), name="follow-others", daemon=True
        ).start()

    def _follow(self, reader: socket.socket) -> None:
        while signal.SIGTERM not in reader.recv(64):
            continue
        while not self._others_left():
            time.sleep(POLL_S)
        # Not while this rank writes its own last words.
        with self._lock:
            # The watchdog may have said more.
            if not self._run.failure(self._rank).exists():
                self.say(Cause.EXCEPTION, "another rank failed", consequence=True)
            _exit(FOLLOWED_EXIT_CODE)

    def _others_left(self) -> bool:
        own = self._run.failure(self._rank)
        return any(path != own for path in self._run.failures.glob("rank_*.json"))


def is_of_peer(error: BaseException) -> bool:
    """Tell whether an exception says only that another rank's process is gone.

    A hook's own broken connection is an `OSError`; those of torch are `RuntimeError`.
    """
    return isinstance(error, RuntimeError) and _PEER_IS_GONE.search(str(error)) is not None


def last_line(error: BaseException) -> str:
    """Give an exception in one line: its type and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
