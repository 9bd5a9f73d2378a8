"""What is shown next to a log that is followed: changes of the job's state, and a live line.

A change of state is a line on stderr. The live line is at the bottom of a terminal, and nowhere
else: step, loss, speed and time left.
"""

import shutil
import sys
import time
from collections.abc import Callable, Mapping

from llada_sft.cluster import history, job_states, restart_policy, slurm
from llada_sft.cluster.run_files import printable
from llada_sft.cluster.watch import pending
from llada_sft.cluster.watch.progress import clock
from llada_sft.cluster.watch.summary import Jobs, owner_is_gone, read_history, summary_of
from llada_sft.errors import LaunchError
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
    return f"{summary.state}: {summary.progress.line(summary.total_steps, summary.step)}{about}"


class JobWatch:
    """Asks SLURM, or the journal of a local run, and prints changes on stderr.

    Args:
        run: The run directory.
        job_id: Its job; None for a local run.

    Attributes:
        jobs: What SLURM said last of the job; None if it did not answer.
        before_line: Called before a line is printed.
    """

    def __init__(self, run: RunDir, job_id: str | None) -> None:
        self._run, self._job_id = run, job_id
        self.jobs: Jobs = {}
        self.before_line: Callable[[], None] = lambda: None
        self._said = ""
        self._restarts: int | None = None

    @property
    def waits(self) -> bool:
        """Whether the job had not started when SLURM was asked."""
        state = (self.jobs or {}).get(self._job_id or "", {}).get("JobState", "")
        return state in ("PENDING", "CONFIGURING")

    def is_over(self) -> bool:
        """Return whether the run will not run again by itself.

        Raises:
            LaunchError: The journal cannot be read, and SLURM does not answer or has no job.
        """
        if self._job_id is None:
            return self._journal_is_over(local=True)
        try:
            with slurm.patience():
                fields = slurm.job_fields(self._job_id)
        except LaunchError as error:
            self.jobs = None
            self._say(str(error), f"{error}; still following")
            return self._journal_is_over(local=False)
        self.jobs = {self._job_id: fields}
        state = fields.get("JobState")
        if state is None or job_states.has_ended(state):
            return True
        self._say_requeued(fields)
        self._say_state(self._job_id, state, fields)
        return False

    def _say_requeued(self, fields: Mapping[str, str]) -> None:
        restarts = fields.get("Restarts", "")
        if not restarts.isdecimal():
            return
        if self._restarts is not None and int(restarts) > self._restarts:
            self._say(f"restart {restarts}", f"job {self._job_id} was requeued ({restarts} so far)")
        self._restarts = int(restarts)

    def _say_state(self, job_id: str, state: str, fields: Mapping[str, str]) -> None:
        """Say the state, if it is another one than the last, or has another reason."""
        described = job_states.described(job_id, fields)
        if ":" in described:
            # Such as REQUEUE_HOLD: it waits for a person.
            self._say(described, f"job {described}")
        elif state == "PENDING":
            reason = pending.reason_of(fields)
            why = pending.in_words(reason, job_id) if reason else "no reason yet"
            start = pending.start_line(pending.start_time(fields), time.time())
            # The estimate changes all the time.
            self._say(f"{state} {why}", f"job {job_id} is PENDING: {why}; start: {start}")
        else:
            nodes = fields.get("NodeList", "")
            on_nodes = f" on {nodes}" if nodes not in ("", "(null)") else ""
            self._say(f"{state}{on_nodes}", f"job {job_id} is {state}{on_nodes}")

    def _journal_is_over(self, local: bool) -> bool:
        try:
            known = history.read(self._run.journal)
        except OSError as error:
            raise LaunchError(f"{self._run.journal}: cannot be read: {error.strerror}") from None
        if local:
            return not known.entries or known.is_at_rest or owner_is_gone(self._run)
        over = known.given_up is not None or known.last_cause in restart_policy.OVER
        return known.is_at_rest and over

    def _say(self, what: str, line: str) -> None:
        """Print a line, unless it says the same as the last one."""
        if what != self._said:
            self.before_line()
            print(line, file=sys.stderr, flush=True)
            self._said = what
