"""A rank's log: where it is, its end, and following it while it grows."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from llada_sft.cluster import journal, slurm
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

POLL_S = 1.0
# squeue and scontrol are a burden on the controller: asked seldom.
ASK_SLURM_EVERY_S = 15.0


def log_file(run: RunDir, rank: int) -> Path:
    """Name the log of a rank: that of the last job, or of a local run."""
    job_id = journal.last_job_id(run.journal)
    if job_id is None:
        return run.rank_log(rank)
    return run.slurm / f"{job_id}_{rank}_log.out"


def print_log(run: RunDir, rank: int) -> None:
    """Print the log of a rank.

    Raises:
        LaunchError: there is none.
    """
    log = log_file(run, rank)
    if not log.exists():
        raise LaunchError(f"{log}: no such log: has the job started, and has it a rank {rank}?")
    sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))


def follow(run: RunDir, rank: int, ask_every_s: float = ASK_SLURM_EVERY_S) -> None:
    """Print the log of a rank as it grows, until the run's job is over."""
    job_id = journal.last_job_id(run.journal)
    follow_file(log_file(run, rank), lambda: _is_over(run, job_id), ask_every_s)


def follow_file(log: Path, is_over: Callable[[], bool], ask_every_s: float) -> None:
    """Print a file as it grows, from its beginning, until `is_over` and all is printed."""
    position = 0
    over = False
    next_question = 0.0
    while True:
        if time.monotonic() >= next_question:
            over = is_over()
            next_question = time.monotonic() + ask_every_s
        position = _print_from(log, position)
        if over:
            return
        time.sleep(min(POLL_S, ask_every_s))


def _print_from(log: Path, position: int) -> int:
    try:
        with log.open("rb") as file:
            file.seek(position)
            while chunk := file.read(1 << 16):
                sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            return file.tell()
    except FileNotFoundError:
        return position


def _is_over(run: RunDir, job_id: str | None) -> bool:
    if job_id is not None:
        return slurm.has_ended(job_id)
    events = [entry.get("event") for entry in journal.read(run.journal)]
    return not events or events[-1] == "ended"
