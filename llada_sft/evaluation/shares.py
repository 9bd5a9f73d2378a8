"""The processes of one evaluation: which of them this is, and how several are started here.

They exchange nothing: each leaves its answers in the folder of results. One that fails ends the
others, and the next start continues.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

# Set for the processes of `run_shares`: "rank/number".
_OWN = "LLADA_SFT_EVALUATION"
_POLL_S = 0.1


class RankShare(NamedTuple):
    """One of `world_size` equal parts of the work; `local_rank` chooses the GPU."""

    rank: int
    world_size: int
    local_rank: int


def rank_share(environment: Mapping[str, str]) -> RankShare:
    """Return this process's share: all, unless `run_shares` or `srun` has started it."""
    if own := environment.get(_OWN):
        rank, number = map(int, own.split("/"))
        return RankShare(rank, number, rank)
    # A batch script has the number of its tasks, too, but is no task itself.
    if "SLURM_STEP_NUM_TASKS" in environment:
        return RankShare(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
        )
    return RankShare(0, 1, 0)


def run_shares(number: int, plan: str) -> int:
    """Compute all shares, each in a process; return the exit code of the first that failed, or 0.

    Args:
        number: Of processes.
        plan: The evaluation, as `EvalPlan.to_json` returns it.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    command = [sys.executable, "-m", "llada_sft.evaluation", "rank", plan]
    processes = [
        subprocess.Popen(
            command,
            env={"OMP_NUM_THREADS": str(threads), **os.environ, _OWN: f"{rank}/{number}"},
        )
        for rank in range(number)
    ]
    try:
        return _first_failure(processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _first_failure(processes: list["subprocess.Popen[bytes]"]) -> int:
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed:
            # A signal is reported as a shell does.
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(_POLL_S)
