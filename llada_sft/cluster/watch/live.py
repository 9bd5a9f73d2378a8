"""The line at the bottom of a terminal while a log is followed: step, loss, speed and time left."""

import shutil
import sys
import time
from collections.abc import Callable

from llada_sft.cluster.run_files import printable
from llada_sft.cluster.watch import pending
from llada_sft.cluster.watch.progress import clock
from llada_sft.cluster.watch.summary import Jobs, read_history, summary_of
from llada_sft.run_dir import RunDir

# Reading what all ranks do takes a moment on a shared file system.
_EVERY_S = 3.0
# A dozen rows: enough for the last of a step, also after a validation.
_METRICS_BYTES = 8 << 10
_CLEAR = b"\r\x1b[K"


class LiveLine:
    """Replaces its line in place; writes nothing where the standard output is not a terminal.

    Args:
        text: Makes the line; called every few seconds.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._is_shown = sys.stdout.isatty()
        self._is_drawn = False
        self._line, self._next = "", 0.0
        # After half a line of the log it would be drawn into that line.
        self.at_line_start = True

    def clear(self) -> None:
        """Remove the line, before anything else is printed."""
        if self._is_drawn:
            self._write(_CLEAR)
            self._is_drawn = False
            # What is printed now may be news.
            self._next = 0.0

    def draw(self) -> None:
        """Show the line, as it is now."""
        if not self._is_shown or not self.at_line_start:
            return
        if time.monotonic() >= self._next:
            self._line, self._next = self._text(), time.monotonic() + _EVERY_S
        width = shutil.get_terminal_size().columns - 1
        encoding = sys.stdout.encoding or "utf-8"
        self._write(_CLEAR + printable(self._line)[:width].encode(encoding, errors="replace"))
        self._is_drawn = True

    @staticmethod
    def _write(content: bytes) -> None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()


def live_text(run: RunDir, jobs: Jobs) -> str:
    """Return what a run is doing, in one line; empty where its journal cannot be read.

    Args:
        run: The run directory.
        jobs: What SLURM said last.
    """
    try:
        summary = summary_of(run, read_history(run), jobs, _METRICS_BYTES)
    except OSError:
        return ""
    if summary.state == "pending":
        start = pending.start_line(summary.estimated_start, time.time())
        return f"pending: {summary.pending_reason or 'no reason yet'}; start: {start}"
    if summary.doing:
        return f"starting: {summary.doing}"
    left = summary.seconds_left
    about = "" if left is None else f", about {clock(left)} left"
    return f"{summary.state}: {summary.progress.line(summary.total_steps)}{about}"
