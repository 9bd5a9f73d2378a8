"""Ends a rank that makes no progress, and says who is waited for.

One thread of each rank looks at the time since its last `pulse`. The first rank for which that is
too long calls the others (`stacks.call`), which look for a call once they are silent for a while
themselves. Each then writes where it stands (`stacks.py`), reads what the others wrote, leaves its
failure report in `failures/`, and exits with HANG_EXIT_CODE. A rank that missed the call is told by
the TERM that follows the first exit, and reports then (`answer`): whoever is named is named by its
own report, in whatever order the ranks find the hang.

Two situations must not keep a rank from exiting. A file system that does not answer: whatever
touches files runs in a thread that is waited for only so long, and stacks are taken in memory. C
code that holds Python's lock, so that no thread of Python runs: faulthandler's timer is in C. The
watchdog keeps setting it again; when it no longer does, the timer writes the stacks and ends the
process with exit code 1.
"""

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from llada_sft.cluster import failures, journal
from llada_sft.cluster.causes import HANG_EXIT_CODE, Cause
from llada_sft.cluster.owner import fence
from llada_sft.cluster.rank import stacks
from llada_sft.cluster.rank.stacks import Stand
from llada_sft.config.schema import TrainConfig
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir

# The phases that may take `hang_grace_s` longer.
_LONG_PHASES = frozenset({"start", "checkpoint", "validation", "end"})
_TICK_S = 1.0
# How much later than the watchdog faulthandler's timer ends the process.
_TIMER_S = 3.0
# How long the stacks of the other ranks are waited for; together with what they may be late and
# with their reports it must end within the 30 s that a hang may take beyond its timeout.
_OTHERS_S = 10.0
_REPORT_S = 20.0
# A rank looks for a call of the others when it is silent for this part of its timeout.
_LISTENS_AFTER = 0.1
# Each rank reads the files of all: seldom where they are many.
_POLL_S_PER_RANK = 0.05


class Watchdog:
    """Watches this process from `with` on until its end.

    Args:
        run: The run directory.
        placement: This rank.
        node: Where it runs; empty for a local run.
    """

    def __init__(self, run: RunDir, placement: Placement, node: str) -> None:
        self._run, self._placement, self._node = run, placement, node
        # Until the config is read.
        self.set_timeouts(TrainConfig())
        self._last = (time.monotonic(), "start", 0)
        self._attempt, self._file = 1, sys.__stderr__.fileno() if sys.__stderr__ else 2
        self._over, self._ending = threading.Event(), False
        # Set when another rank has found a hang; and when it has exited, so that time is short.
        self._called, self._late = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Watch no longer; in a hang that was found already, wait for the end of the process.

        The end of another rank raises an error in this one, which is no news any more.
        """
        self._over.set()
        self._thread.join(timeout=_REPORT_S)
        if self._ending:
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def answer(self) -> None:
        """Report where this rank stands, and exit, if another one has reported a hang and left."""
        hang = any(failure.cause == Cause.HANG for failure in failures.read_all(self._run))
        if hang:
            self._late.set()
            self._called.set()
        # A report that has begun already is this rank's own: it must be completed.
        if hang or self._over.is_set() or self._ending:
            self._thread.join()

    def set_timeouts(self, config: TrainConfig) -> None:
        self._timeout_s, self._grace_s = config.hang_timeout_s, config.hang_grace_s

    def pulse(self, phase: str, step: int) -> None:
        """Say what this rank begins to do (`training.host.Phase`), and the steps made."""
        self._last = (time.monotonic(), phase, step)

    def _watch(self) -> None:
        self._set_timer(self._left_s())
        self._open()
        threading.Thread(target=self._listen, name="hang-call", daemon=True).start()
        while not self._over.wait(self._tick_s):
            left_s = self._left_s()
            if left_s < 0 or self._called.is_set():
                self._end()
            self._set_timer(left_s)
        self._close()

    def _listen(self) -> None:
        # A thread of its own: the file system may not answer.
        while not self._over.wait(self._tick_s):
            silent_s = time.monotonic() - self._last[0]
            if silent_s > _LISTENS_AFTER * self._timeout_s and stacks.is_called(
                self._run, self._attempt
            ):
                self._called.set()
                return

    @property
    def _tick_s(self) -> float:
        return min(_TICK_S, self._timeout_s / 10)

    def _left_s(self) -> float:
        since, phase, _ = self._last
        allowed_s = self._timeout_s + (self._grace_s if phase in _LONG_PHASES else 0)
        return since + allowed_s - time.monotonic()

    def _set_timer(self, left_s: float) -> None:
        # One per process: this replaces the one before.
        faulthandler.dump_traceback_later(left_s + _TIMER_S, exit=True, file=self._file)

    def _open(self) -> None:
        """Open the file of the stacks while that is still possible."""
        rank = self._placement.rank
        try:
            self._attempt = journal.current_attempt(self._run.journal)
            self._run.stacks.mkdir(exist_ok=True)
            stacks.clear_unused(self._run, rank)
            path = self._run.rank_stacks(self._attempt, rank)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            _write(self._file, stacks.title(rank, self._placement.world_size, self._node))
            stacks.prepare_call(self._run, self._attempt, rank)
        except OSError as error:
            print(f"watchdog: stacks would go here, not to a file: {error}", file=sys.stderr)

    def _close(self) -> None:
        """Leave nothing of an attempt that did not hang."""
        with suppress(OSError):
            self._run.rank_stacks(self._attempt, self._placement.rank).unlink()
        with suppress(OSError):
            self._run.hang_call(self._attempt).unlink()

    def _end(self) -> None:
        """Report, if that can be done in time, and exit at any rate."""
        self._ending = True
        try:
            self._set_timer(_REPORT_S)
            report = threading.Thread(target=self._report, args=self._last, daemon=True)
            report.start()
            report.join(_REPORT_S)
        finally:
            os._exit(HANG_EXIT_CODE)

    def _report(self, since: float, phase: str, step: int) -> None:
        # A rank that was stopped while another owner took the run over has not hung.
        fence.check(self._run.path)
        seconds = time.monotonic() - since
        own = self._stand(phase, step, seconds)
        with suppress(OSError):
            stacks.call(self._run, self._attempt, own.rank)
        with suppress(OSError):
            _write(self._file, stacks.header(own) + _all_stacks())
        stands = self._wait_for_others()
        # Its own file may be what cannot be written.
        stands[own.rank] = own
        reports = stacks.judge(self._run, self._attempt, stands, seconds)
        print(reports[own.rank].error, file=sys.stderr, flush=True)
        failures.write(self._run, reports[own.rank])
        # For those who cannot, the first who can writes them.
        if own.rank == min(one.rank for one in stands if one.phase):
            for report, stand in zip(reports, stands, strict=True):
                if not stand.phase:
                    failures.write(self._run, replace(report, witness=own.rank))

    def _stand(self, phase: str, step: int, seconds: float) -> Stand:
        frames = sys._current_frames()
        main = frames[threading.main_thread().ident or 0]
        return Stand(
            self._placement.rank,
            self._node,
            stacks.place_of(main),
            phase,
            step,
            round(seconds, 1),
            stacks.waits(frames.values()),
        )

    def _wait_for_others(self) -> list[Stand]:
        """Read the stacks of all ranks, when they are there or time is up."""
        deadline = time.monotonic() + _OTHERS_S
        before: list[Stand] = []
        while True:
            stands = stacks.read_all(self._run, self._attempt, self._placement.world_size)
            # faulthandler writes piece by piece, the main thread last: read until nothing is added.
            whole = all(one.place for one in stands) and (
                all(one.phase for one in stands) or stands == before
            )
            if whole or self._late.is_set() or time.monotonic() > deadline:
                return stands
            before = stands
            time.sleep(_POLL_S_PER_RANK * self._placement.world_size)


def _all_stacks() -> str:
    # faulthandler writes with Python's lock held: to a file it might keep it for ever.
    memory = os.memfd_create("stacks")
    faulthandler.dump_traceback(memory)
    main = threading.main_thread().ident or 0
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        return f"the main thread is 0x{main:016x}\n\n{file.read().decode(errors='replace')}"


def _write(file: int, text: str) -> None:
    """Write, and let other nodes see it."""
    left = text.encode()
    while left:
        left = left[os.write(file, left) :]
    # What is no file on a disk cannot be synchronised.
    with suppress(OSError):
        os.fsync(file)
