"""What may befall an attempt of a run, and how the tests bring it about from outside.

Those that are caught (`GRACEFUL`) let all ranks save: no step is lost. Those of IN_RANK are brought
about by the rank itself (chaos_hook.py), the others by `inject`.
"""

import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from cluster import NODES, Cluster
from processes import find_processes, read_words, wait_until
from second_starter import Starter, start_again

from llada_sft.cluster.causes import Cause
from llada_sft.run_dir import RunDir


class Fault(StrEnum):
    TIME_LIMIT = "time limit"
    PREEMPTION = "preemption"
    REQUEUE = "scontrol requeue"
    USR2_TO_ONE = "USR2 to one rank"
    TERM = "scancel --signal=TERM"
    KILL_RANK = "kill -9 of a rank"
    KILL_NODE = "kill -9 of a node"
    KILL_IN_SAVE = "kill -9 in a save"
    KILL_BEFORE_LATEST = "kill -9 before latest"
    EXCEPTION = "exception on a rank"
    HANG = "hang of a rank"
    SECOND_STARTER = "a second starter"
    DAMAGED = "a damaged newest checkpoint"


GRACEFUL = {
    Fault.TIME_LIMIT: Cause.TIME_LIMIT,
    Fault.PREEMPTION: Cause.PREEMPTED,
    Fault.REQUEUE: Cause.REQUEUED,
    Fault.USR2_TO_ONE: Cause.TOLD_TO_STOP,
    Fault.TERM: Cause.TOLD_TO_STOP,
    # It is refused; then USR2 ends the attempt.
    Fault.SECOND_STARTER: Cause.TOLD_TO_STOP,
}
KILLS = {
    Fault.KILL_RANK: Cause.KILLED,
    Fault.KILL_NODE: Cause.NODE_FAILURE,
    Fault.KILL_IN_SAVE: Cause.KILLED,
    Fault.KILL_BEFORE_LATEST: Cause.KILLED,
    # A rank changes one bit of the newest checkpoint, then kills itself.
    Fault.DAMAGED: Cause.KILLED,
}
OTHERS = {Fault.EXCEPTION: Cause.EXCEPTION, Fault.HANG: Cause.HANG}
# The word that the journal must have for it.
CAUSES = GRACEFUL | KILLS | OTHERS
IN_RANK = (
    Fault.KILL_IN_SAVE,
    Fault.KILL_BEFORE_LATEST,
    Fault.EXCEPTION,
    Fault.HANG,
    Fault.DAMAGED,
)
# Checkpoints that an attempt makes before its fault: of a damaged one the one before is needed.
CHECKPOINTS_BEFORE = {Fault.DAMAGED: 2}
NUM_NODES = 2
# Of a rank's command line.
RANK_WORDS = {"llada_sft.cluster", "rank"}
SIGNAL_LEAD_S = 60
TIME_LIMIT_MIN = 30
# SLURM looks at time limits that often, and sends the signal by so much too early.
TIME_LIMIT_POLL_S = 30
MEND_TIMEOUT_S = 60
# What SLURM could not tell a node it tells it a minute later.
RETRY_S = 70


@dataclass(frozen=True)
class Planned:
    """One attempt's fault.

    Attributes:
        fault: Which one.
        after: Steps that the attempt makes before.
        rank: Whom it befalls; of a node, the one where that rank is.
    """

    fault: Fault
    after: int
    rank: int


@dataclass(frozen=True)
class Target:
    """The job that a fault befalls.

    Attributes:
        run: Its run directory.
        starters: What starts the run a second time.
        resting: Nodes that get no job, and until when.
    """

    cluster: Cluster
    job: str
    run: RunDir
    starters: Sequence[Starter] = ()
    resting: dict[str, float] = field(default_factory=dict)

    def ranks(self) -> dict[int, int]:
        """Find the ranks' processes: pid by rank."""
        found = {}
        for pid in find_processes(self.cluster.state_dir):
            environment = variables(pid)
            # srun and the batch script have a SLURM_PROCID too, but belong to no step.
            if environment.get("SLURM_JOB_ID") == self.job and "SLURM_STEP_ID" in environment:
                words = read_words(Path(f"/proc/{pid}/cmdline"))
                if set(words) >= RANK_WORDS and "srun" not in words[0]:
                    found[int(environment["SLURM_PROCID"])] = pid
        return found

    def node_of(self, rank: int) -> str:
        return variables(self.ranks()[rank])["SLURMD_NODENAME"]


def variables(pid: int) -> dict[str, str]:
    """Read the environment that a process was started with."""
    words = read_words(Path(f"/proc/{pid}/environ"))
    return dict(word.split("=", 1) for word in words if "=" in word)


def make_plan(
    faults: list[Fault], checkpoint_every: int, generator: random.Random, ranks_per_node: int = 2
) -> list[Planned]:
    """Choose when and whom each fault befalls; an attempt makes a checkpoint before its fault."""
    ranks = range(NUM_NODES * ranks_per_node)
    return [
        Planned(
            fault,
            checkpoint_every * CHECKPOINTS_BEFORE.get(fault, 1)
            + generator.randint(1, checkpoint_every - 1),
            # Only rank 0 renames.
            0 if fault == Fault.KILL_BEFORE_LATEST else generator.choice(ranks),
        )
        for fault in faults
    ]


def choose_faults(number: int, generator: random.Random, among: list[Fault]) -> list[Fault]:
    """Choose so many at random; each comes once before any comes again."""
    chosen: list[Fault] = []
    while len(chosen) < number:
        chosen += generator.sample(among, len(among))
    return chosen[:number]


def inject(target: Target, planned: Planned) -> str | None:
    """Bring the fault about, where the rank does not do so itself.

    Returns:
        What was not as it should be already now, if anything.
    """
    problem = None
    cluster, job = target.cluster, target.job
    match planned.fault:
        case Fault.TIME_LIMIT:
            _let_time_run_out(target)
        case Fault.PREEMPTION:
            where = f"--nodelist={target.node_of(planned.rank)}"
            options = ("--partition=high", "--exclusive", "--output=preempting.out", "--wrap=true")
            cluster.run(["sbatch", where, *options], cwd=cluster.state_dir)
        case Fault.REQUEUE:
            cluster.run(["scontrol", "requeue", job])
        case Fault.SECOND_STARTER:
            starter = target.starters[planned.rank % len(target.starters)]
            problem = start_again(target.cluster, target.run, starter)
            os.kill(target.ranks()[planned.rank], signal.SIGUSR2)
        case Fault.USR2_TO_ONE:
            os.kill(target.ranks()[planned.rank], signal.SIGUSR2)
        case Fault.TERM:
            cluster.run(["scancel", "--signal=TERM", job])
        case Fault.KILL_RANK:
            os.kill(target.ranks()[planned.rank], signal.SIGKILL)
        case Fault.KILL_NODE:
            node = target.node_of(planned.rank)
            if node != cluster.job(job)["BatchHost"]:
                target.resting[node] = math.inf
            kill_node(target, node)
    return problem


def mend(target: Target) -> None:
    """Take back what a fault has changed in the cluster, when the job is requeued.

    A node that was killed rests first. Its srun has asked SLURM to end the step on all nodes; SLURM
    asks this one again when it is back, and would end the ranks of the next attempt there: their
    step has the same number (seen on 22.05.8).
    """
    limit = ["scontrol", "update", f"JobId={target.job}", f"TimeLimit={TIME_LIMIT_MIN}"]

    def is_set() -> bool:  # Not while SLURM still ends the attempt before.
        return subprocess.run(limit, env=target.cluster.env, capture_output=True).returncode == 0

    if not wait_until(is_set, MEND_TIMEOUT_S):
        target.cluster.run(limit)
    for node in NODES:
        if not is_alive(slurmd_pid(target.cluster, node)):
            if node in target.resting:
                set_state(target, node, "DRAIN")
                target.resting[node] = time.monotonic() + RETRY_S
            target.cluster.start_node(node)


def wake_rested(target: Target) -> None:
    """Let the nodes have jobs that have rested long enough."""
    for node, until in list(target.resting.items()):
        if time.monotonic() > until:
            set_state(target, node, "RESUME")
            del target.resting[node]


def set_state(target: Target, node: str, state: str) -> None:
    command = ["scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=chaos"]
    target.cluster.run(command)


def slurmd_pid(cluster: Cluster, node: str) -> int:
    return int((cluster.state_dir / "pids" / f"slurmd-{node}").read_text())


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that is dead and not buried yet has no command line."""
    return bool(read_words(Path(f"/proc/{pid}/cmdline"))[0])


def kill_node(target: Target, node: str) -> None:
    """Kill all that a node runs: slurmd, what watches the steps, and the steps themselves."""
    os.kill(slurmd_pid(target.cluster, node), signal.SIGKILL)
    for _ in range(2):  # What was started meanwhile too.
        pids = [
            pid
            for pid in find_processes(target.cluster.state_dir)
            if variables(pid).get("SLURMD_NODENAME") == node
        ]
        watchers = {parent(pid) for pid in pids}
        watchers = {pid for pid in watchers if pid and is_slurmstepd(pid)}
        for pid in [*watchers, *pids]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def parent(pid: int) -> int | None:
    """Find the parent of a process; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # After the name, which may have anything in it.
    return int(status.rpartition(")")[2].split()[1])


def is_slurmstepd(pid: int) -> bool:
    return read_words(Path(f"/proc/{pid}/cmdline"))[0].startswith("slurmstepd")


def _let_time_run_out(target: Target) -> None:
    """Give the job so little time that SLURM signals it soon, and leaves it its lead."""
    started = datetime.fromisoformat(target.cluster.job(target.job)["StartTime"])
    elapsed_s = (datetime.now() - started).total_seconds()
    minutes = math.ceil((elapsed_s + SIGNAL_LEAD_S - TIME_LIMIT_POLL_S / 2) / 60)
    target.cluster.run(["scontrol", "update", f"JobId={target.job}", f"TimeLimit={minutes}"])
