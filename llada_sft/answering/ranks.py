"""Which of the processes of one sampling this is, and how several are started on one machine.

Under `srun` each task is a rank. `--ranks N` starts N processes here, one for each GPU or share of
the cores. They talk through the folder of answers alone.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from llada_sft.errors import ConfigError

# Set by `--ranks` for its processes: "rank/number".
_OWN = "LLADA_SFT_ANSWERING"
_POLL_S = 0.1


class Rank(NamedTuple):
    """One of `world_size` processes; `local_rank` chooses its GPU."""

    rank: int
    world_size: int
    local_rank: int

    def has(self, number: int) -> bool:
        """Return whether the question of this number is this rank's."""
        return number % self.world_size == self.rank


def rank_of(environment: Mapping[str, str]) -> Rank:
    """Read this process's place; alone, where neither `srun` nor `--ranks` has started it."""
    if own := environment.get(_OWN):
        rank, world_size = map(int, own.split("/"))
        return Rank(rank, world_size, rank)
    # A batch script has the number of its tasks too, but is no task: only a step has this one.
    if "SLURM_STEP_NUM_TASKS" in environment:
        world_size = int(environment["SLURM_STEP_NUM_TASKS"])
        return Rank(int(environment["SLURM_PROCID"]), world_size, int(environment["SLURM_LOCALID"]))
    return Rank(0, 1, 0)


def start_ranks(number: int, arguments: Sequence[str]) -> int:
    """Run `llada-sft` with the same arguments in several processes; return the exit code.

    The first that fails ends the others.

    Raises:
        ConfigError: The number is not at least 1; or `srun` has made ranks already.
    """
    if number < 1:
        raise ConfigError(f"--ranks: must be at least 1, got {number}")
    if rank_of(os.environ).world_size > 1:
        raise ConfigError("--ranks: srun has started several tasks already: leave it away")
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    processes = []
    for rank in range(number):
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, _OWN: f"{rank}/{number}"}
        command = [sys.executable, "-m", "llada_sft", *arguments]
        processes.append(subprocess.Popen(command, env=environment))
    return _first_failure(processes)


def is_started() -> bool:
    """Return whether `start_ranks` has started this process."""
    return _OWN in os.environ


def _first_failure(processes: Iterable["subprocess.Popen[bytes]"]) -> int:
    """Wait for all; return the exit code of the first that failed, 0 if none did."""
    running, failed = list(processes), 0

    def end_all(*_: object) -> None:
        for process in running:
            process.terminate()

    before = signal.signal(signal.SIGTERM, end_all)
    try:
        while running:
            for process in [one for one in running if one.poll() is not None]:
                running.remove(process)
                code = process.returncode
                if code and not failed:
                    # Ended by a signal: as a shell reports it.
                    failed = code if code > 0 else 128 - code
                    end_all()
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        # A terminal has sent it to all of them.
        for process in running:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed
