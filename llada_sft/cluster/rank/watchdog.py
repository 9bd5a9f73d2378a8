"""Ends a rank that makes no progress, and reports which ranks the others wait for.

One thread of each rank watches the time since its rank's last `pulse`. The first rank for which
that time is too long calls the others (`stacks.call`); a rank looks for a call only after it has
been silent for a while itself. Each rank then writes where it is (`stacks.py`), reads what the
others wrote, writes its failure report to `failures/`, and exits with HANG_EXIT_CODE. A rank that
missed the call receives the TERM that follows the first exit, and reports then (`answer`). The
ranks that are waited for are therefore named by their own reports, whichever rank detects the hang.

Two situations must not stop a rank from exiting. (1) A file system that hangs: all file access
during a hang happens in a helper thread with a timeout, and stacks are dumped to memory. (2) C code
that holds the GIL: faulthandler's C-level timer, which the watchdog keeps re-arming, dumps the
stacks and exits with code 1.
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

from llada_sft.cluster import failures, history
from llada_sft.cluster.causes import HANG_EXIT_CODE, Cause
from llada_sft.cluster.owner import fence
from llada_sft.cluster.rank import stacks
from llada_sft.cluster.rank.stacks import RankState
from llada_sft.config.sections.train import TrainConfig
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir

# The phases that may take `hang_grace_s` longer.
_LONG_PHASES = frozenset({"start", "checkpoint", "validation", "end"})
_TICK_S = 1.0
# How many seconds after the watchdog faulthandler's timer ends the process.
_TIMER_S = 3.0
# How long a rank waits for the stacks of the others. Together with their delay and with the writing
# of the reports it must fit into the 30 s that a hang may last beyond its timeout.
_OTHERS_S = 10.0
_REPORT_S = 20.0
# A rank looks for a call of the others after it has been silent for this part of its timeout.
_LISTENS_AFTER = 0.1
# Each rank reads the files of all ranks: the more ranks there are, the less often.
_POLL_S_PER_RANK = 0.05


class Watchdog:
    """Watches this process as long as its context lasts.

    Args:
        run: The run directory.
        placement: This rank.
        node: The node of this rank; empty for a local run.
    """

    def __init__(self, run: RunDir, placement: Placement, node: str) -> None:
        self._run, self._placement, self._node = run, placement, node
        # Until the config is read.
        self.set_timeouts(TrainConfig())
        self._last = (time.monotonic(), "start", 0)
        self._attempt, self._file = 1, sys.__stderr__.fileno() if sys.__stderr__ else 2
        self._over, self._ending = threading.Event(), False
        # `_called`: another rank has detected a hang. `_late`: it has exited, so time is short.
        self._called, self._late = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop watching; if a hang was detected already, wait for the end of the process.

        The end of another rank raises an error in this rank; it must not replace the hang's report.
        """
        self._over.set()
        self._thread.join(timeout=_REPORT_S)
        if self._ending:
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def answer(self) -> None:
        """Report where this rank is, and exit, if another rank has reported a hang and exited."""
        hang = any(failure.cause == Cause.HANG for failure in failures.read_all(self._run))
        if hang:
            self._late.set()
            self._called.set()
        # If this rank is already writing its own report, that report must be completed.
        if hang or self._over.is_set() or self._ending:
            self._thread.join()

    def set_timeouts(self, config: TrainConfig) -> None:
        self._timeout_s, self._grace_s = config.hang_timeout_s, config.hang_grace_s

    def pulse(self, phase: str, step: int) -> None:
        """Note what this rank starts to do (`training.host.Phase`), and the steps made."""
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
        # In a separate thread, because the file system may hang.
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
        # A process has one such timer: this call replaces the previous one.
        faulthandler.dump_traceback_later(left_s + _TIMER_S, exit=True, file=self._file)

    def _open(self) -> None:
        """Open the file for the stacks at the start, while the file system still works."""
        rank = self._placement.rank
        try:
            self._attempt = history.read(self._run.journal).current_number
            self._run.stacks.mkdir(exist_ok=True)
            stacks.clear_unused(self._run, rank)
            path = self._run.rank_stacks(self._attempt, rank)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            _write(self._file, stacks.title(rank, self._placement.world_size, self._node))
            stacks.prepare_call(self._run, self._attempt, rank)
        except OSError as error:
            print(
                f"watchdog: stacks are written here instead of to a file: {error}", file=sys.stderr
            )

    def _close(self) -> None:
        """Remove the files of an attempt that did not hang."""
        with suppress(OSError):
            self._run.rank_stacks(self._attempt, self._placement.rank).unlink()
        with suppress(OSError):
            self._run.hang_call(self._attempt).unlink()

    def _end(self) -> None:
        """Report if possible in time, and exit in any case."""
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
        state = self._state(phase, step, seconds)
        rank = state.rank
        with suppress(OSError):
            stacks.call(self._run, self._attempt, rank)
        with suppress(OSError):
            _write(self._file, stacks.header(state) + _all_stacks())
        states = self._wait_for_others()
        # This rank's file may be the one that cannot be written.
        states[rank] = state
        reports = stacks.failure_reports(self._run, self._attempt, states, seconds)
        print(reports[rank].error, file=sys.stderr, flush=True)
        failures.write(self._run, reports[rank])
        # The first rank that can report also writes the reports of the ranks that cannot.
        if rank == min(other.rank for other in states if other.phase):
            for report, other in zip(reports, states, strict=True):
                if not other.phase:
                    failures.write(self._run, replace(report, witness=rank))

    def _state(self, phase: str, step: int, seconds: float) -> RankState:
        frames = sys._current_frames()
        main = frames[threading.main_thread().ident or 0]
        return RankState(
            rank=self._placement.rank,
            node=self._node,
            place=stacks.place_of(main),
            phase=phase,
            step=step,
            seconds=round(seconds, 1),
            in_collective=stacks.in_collective(frames.values()),
        )

    def _wait_for_others(self) -> list[RankState]:
        """Read the stacks of all ranks, once they are complete or the time is up."""
        deadline = time.monotonic() + _OTHERS_S
        before: list[RankState] = []
        while True:
            states = stacks.read_all(self._run, self._attempt, self._placement.world_size)
            # faulthandler writes piece by piece, the main thread last: read until nothing is added.
            complete = all(state.place for state in states) and (
                all(state.phase for state in states) or states == before
            )
            if complete or self._late.is_set() or time.monotonic() > deadline:
                return states
            before = states
            time.sleep(_POLL_S_PER_RANK * self._placement.world_size)


def _all_stacks() -> str:
    # faulthandler holds the GIL while it writes: a write to a file might hold it forever.
    memory = os.memfd_create("stacks")
    faulthandler.dump_traceback(memory)
    main = threading.main_thread().ident or 0
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        return f"the main thread is 0x{main:016x}\n\n{file.read().decode(errors='replace')}"


def _write(file: int, text: str) -> None:
    """Write a text to a file, and make it visible to other nodes."""
    remaining = text.encode()
    while remaining:
        remaining = remaining[os.write(file, remaining) :]
    # stderr, which is used instead of a file that cannot be opened, may not support fsync.
    with suppress(OSError):
        os.fsync(file)
