"""A rank's log: where it is, the part that is asked for, and following it while it grows."""

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from llada_sft.cluster import run_files, slurm
from llada_sft.cluster.history import Attempt, History
from llada_sft.cluster.rank import log_sections
from llada_sft.cluster.watch import ending
from llada_sft.cluster.watch.following import JobWatch, LiveLine, live_text
from llada_sft.cluster.watch.summary import own_job, read_history
from llada_sft.entry import INTERRUPTED
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

POLL_S = 1.0
# squeue and scontrol are a burden on the controller: asked seldom.
ASK_SLURM_EVERY_S = 15.0
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Wanted:
    """Which log is to be shown, and how much of it.

    Attributes:
        rank: Whose.
        tail: Only its last lines; None means all.
        attempt: Only this attempt's lines; None means all of the last job's, or of all local runs.
    """

    rank: int = 0
    tail: int | None = None
    attempt: int | None = None


@dataclass(frozen=True)
class _Part:
    """A part of a log: from a byte to another one, or to the end that grows."""

    log: Path
    begin: int = 0
    end: int | None = None


def print_log(run: RunDir, wanted: Wanted) -> None:
    """Print the log of a rank, or the part that is wanted.

    Raises:
        LaunchError: There is no such log, or no such attempt.
    """
    part = _part(run, wanted)
    try:
        _print_from(part.log, _first_byte(part, wanted.tail), part.end)
    except FileNotFoundError:
        raise _no_log(part.log, wanted.rank) from None


def follow(run: RunDir, wanted: Wanted, ask_every_s: float = ASK_SLURM_EVERY_S) -> int:
    """Print the log of a rank as it grows, until the run's job is over; then how it ended.

    Returns:
        The job's exit code; 130 after Ctrl-C, which ends the following and not the job.

    Raises:
        LaunchError: The attempt that is wanted is not the last one.
    """
    history = _history(run)
    last = history.last
    if wanted.attempt is not None and (last is None or wanted.attempt != last.number):
        _attempt(run, history, wanted.attempt)
        raise LaunchError(f"--attempt {wanted.attempt} has ended: leave --follow away")
    part, job_id = _part(run, wanted), own_job(run, history)
    watch = JobWatch(run, job_id)
    live = LiveLine(lambda: live_text(run, watch.jobs))
    watch.before_line = live.clear
    try:
        begin = _first_byte(part, wanted.tail)
        follow_file(part.log, watch, ask_every_s, begin, live)
        with slurm.patience():
            ended = ending.find(run, job_id)
    except KeyboardInterrupt:
        live.clear()
        print(f"\n{_detached(run, job_id)}", file=sys.stderr)
        return INTERRUPTED
    print(*ending.lines(run, ended), sep="\n", flush=True)
    return ended.exit_code


class Watch(Protocol):
    """Knows of the job that writes a log."""

    @property
    def waits(self) -> bool:
        """Whether the job had not started when it was asked for last."""

    def is_over(self) -> bool:
        """Ask whether the job will not write any more."""


def follow_file(log: Path, watch: Watch, ask_every_s: float, position: int, live: LiveLine) -> None:
    """Print a file as it grows until its job is over and all is printed.

    Args:
        log: The file; it may not exist yet.
        watch: Knows whether the job is over.
        ask_every_s: Seconds between two questions to `watch`; it is asked at once when the log of
            a job grows that had not started.
        position: Where to start, in bytes.
        live: A line to show below the log.
    """
    over = False
    next_question = 0.0
    while True:
        if time.monotonic() >= next_question:
            over = watch.is_over()
            next_question = time.monotonic() + ask_every_s
        before = position
        with suppress(FileNotFoundError):
            position = _print_from(log, position, None, live)
        if position > before and watch.waits:
            next_question = 0.0
        if over:
            live.clear()
            return
        live.draw()
        time.sleep(min(POLL_S, ask_every_s))


def _part(run: RunDir, wanted: Wanted) -> _Part:
    """Return the part of a log that holds the wanted attempt, or all of it.

    Raises:
        LaunchError: There is no such attempt, or its lines cannot be distinguished from others'.
    """
    history = _history(run)
    if wanted.attempt is None:
        return _Part(_log_file(run, own_job(run, history), wanted.rank))
    attempt = _attempt(run, history, wanted.attempt)
    log = _log_file(run, attempt.job_id, wanted.rank)
    try:
        with run_files.open_regular(log) as file:
            section = log_sections.find_section(file, attempt.number)
    except FileNotFoundError:
        raise _no_log(log, wanted.rank) from None
    except OSError as error:
        raise _unreadable(log, error) from None
    if section:
        return _Part(log, *section)
    if len(history.of_job(attempt.job_id)) == 1:
        return _Part(log)
    raise LaunchError(
        f"{log}: does not say where attempt {attempt.number} begins: an older version wrote it, or"
        " that attempt ended before its ranks; without --attempt the whole log is shown"
    )


def _attempt(run: RunDir, history: History, number: int) -> Attempt:
    matching = [attempt for attempt in history.attempts if attempt.number == number]
    if not matching:
        have = f"the last one is {history.last.number}" if history.last else "it has none yet"
        raise LaunchError(f"{run.path}: has no attempt {number}; {have}")
    return matching[-1]


def _history(run: RunDir) -> History:
    try:
        return read_history(run)
    except OSError as error:
        raise LaunchError(f"{run.journal}: cannot be read: {error.strerror}") from None


def _log_file(run: RunDir, job_id: str | None, rank: int) -> Path:
    """Return the log of a rank: submitit's of a job, or that of local runs."""
    return run.rank_log(rank) if job_id is None else run.slurm / f"{job_id}_{rank}_log.out"


def _first_byte(part: _Part, tail: int | None) -> int:
    """Return where the last lines of a part begin; the part's begin if all of it is wanted."""
    if tail is None:
        return part.begin
    try:
        with run_files.open_regular(part.log) as file:
            end = os.fstat(file.fileno()).st_size if part.end is None else part.end
            return _last_lines(file, part.begin, end, tail)
    except FileNotFoundError:
        return part.begin
    except OSError as error:
        raise _unreadable(part.log, error) from None


def _last_lines(file: BinaryIO, begin: int, end: int, count: int) -> int:
    """Return where the last lines between two bytes begin, reading backwards."""
    position, found = end, 0
    while position > begin:
        start = max(begin, position - _PIECE_BYTES)
        file.seek(start)
        piece = file.read(position - start)
        # The newline at the very end closes the last line, and begins none.
        limit = len(piece) - 1 if position == end else len(piece)
        while (newline := piece.rfind(b"\n", 0, limit)) >= 0:
            found += 1
            if found == count:
                return start + newline + 1
            limit = newline
        position = start
    return begin


def _print_from(log: Path, position: int, end: int | None, live: LiveLine | None = None) -> int:
    try:
        with run_files.open_regular(log) as file:
            file.seek(position)
            while chunk := file.read(_piece_bytes(file.tell(), end)):
                if live:
                    live.clear()
                    live.at_line_start = chunk.endswith(b"\n")
                sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            return file.tell()
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.filename is None:
            # The output failed, not the log.
            raise
        raise _unreadable(log, error) from None


def _piece_bytes(position: int, end: int | None) -> int:
    return _PIECE_BYTES if end is None else min(end - position, _PIECE_BYTES)


def _no_log(log: Path, rank: int) -> LaunchError:
    return LaunchError(f"{log}: no such log: has the job started, and has it a rank {rank}?")


def _unreadable(log: Path, error: OSError) -> LaunchError:
    return LaunchError(f"{log}: cannot be read: {error.strerror}")


def _detached(run: RunDir, job_id: str | None) -> str:
    if job_id is None:
        return f"the run continues: {run.path}; to stop it, press Ctrl-C where it was launched"
    return f"job {job_id} continues; to stop it:  {run.shell_command('cancel')}"
