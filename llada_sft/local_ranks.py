"""Processes that share work and exchange nothing: which of them this is, and how to start them.

Sampling and evaluation are divided among them. Each leaves its answers in a folder. One that fails
ends the others, and the next start continues.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Set for the processes of `run_ranks`: "rank/number".
_OWN = "LLADA_SFT_LOCAL_RANK"
_POLL_S = 0.1


class Rank(NamedTuple):
    """One of `world_size` processes; `local_rank` chooses its GPU."""

    rank: int
    world_size: int
    local_rank: int

    def has(self, number: int) -> bool:
        """Return whether the piece of work of this number is this rank's."""
        return number % self.world_size == self.rank


ALONE = Rank(0, 1, 0)


def rank_of(environment: Mapping[str, str]) -> Rank:
    """Return this process's place: it is alone, unless `run_ranks` or `srun` has started it."""
    if own := environment.get(_OWN):
        rank, number = map(int, own.split("/"))
        return Rank(rank, number, rank)
    # A batch script has the number of its tasks, too, but is no task itself.
    if "SLURM_STEP_NUM_TASKS" in environment:
        return Rank(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
        )
    return ALONE


def is_local_rank() -> bool:
    """Return whether `run_ranks` has started this process."""
    return _OWN in os.environ


def run_ranks(number: int, command: Sequence[str]) -> int:
    """Run a command in several processes at once; return the exit code of the first that failed.

    The cores are divided among them. TERM and INT end them, too.

    Args:
        number: Of processes.
        command: The program and its arguments.

    Returns:
        0 if none failed.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    processes = [
        subprocess.Popen(
            command,
            env={"OMP_NUM_THREADS": str(threads), **os.environ, _OWN: f"{rank}/{number}"},
        )
        for rank in range(number)
    ]

    def end_all(*_: object) -> None:
        for process in processes:
            process.terminate()

    before = signal.signal(signal.SIGTERM, end_all)
    try:
        return _first_failure(processes)
    finally:
        end_all()
        for process in processes:
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _first_failure(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed:
            # A signal is reported as a shell does.
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(_POLL_S)
