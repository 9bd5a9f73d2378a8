"""Ranks that a person starts, without a batch script: `srun` in an allocation, or `torchrun`.

    srun --nodes 2 --ntasks-per-node 8 python -m llada_sft.cluster rank RUN
    torchrun --nproc-per-node 2 -m llada_sft.cluster rank RUN

Nobody has claimed the run for them, recorded an attempt or chosen a port. Rank 0 does so; the
others wait for its `started` in the journal, which has their common name (`group`) and the place
where all meet. From then on they are ranks of a launcher, as those of --local: nothing is
requeued, and setup.sh is not sourced. All run the run's own copy of the code.
"""

import os
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple

import llada_sft
from llada_sft.cluster import history, journal
from llada_sft.cluster.attempt import supervisor
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.launch.ports import free_port
from llada_sft.cluster.owner import owner_files
from llada_sft.cluster.owner.claim import claim
from llada_sft.cluster.owner.identity import Owner, process_start, this_process
from llada_sft.cluster.owner.ownership import VARIABLE, Ownership, forget, job_owner
from llada_sft.config import Config, load_run_config
from llada_sft.errors import EXIT_CODE, LaunchError
from llada_sft.run_dir import RunDir

WAIT_S = 60.0
GRACE_S = 10.0
POLL_S = 0.2


class Group(NamedTuple):
    """Ranks that were started together, and this one's place among them."""

    name: str
    rank: int
    world_size: int
    nodes: str


def group_of(environment: Mapping[str, str]) -> Group | None:
    """Return the ranks that `srun` or `torchrun` has started together with this one, if any.

    Raises:
        LaunchError: torchrun runs on several nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _of_torchrun(environment)
    if "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment:
        return None
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    name = ".".join(environment.get(name, "0") for name in names)
    return Group(
        name,
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_NTASKS"]),
        environment.get("SLURM_STEP_NODELIST", ""),
    )


def _of_torchrun(environment: Mapping[str, str]) -> Group:
    if environment.get("GROUP_WORLD_SIZE", "1") != "1":
        raise LaunchError(
            "torchrun starts ranks on one node only; on several nodes use  launch.py --here ,"
            " or  srun python -m llada_sft.cluster rank RUN"
        )
    # Its id may be "none" in all starts; its process is another one each time.
    agent = os.getppid()
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = f"torchrun.{agent}.{process_start(agent)}.{restart}"
    return Group(name, int(environment["RANK"]), int(environment["WORLD_SIZE"]), "")


def join_run(run: RunDir, environment: MutableMapping[str, str]) -> Ownership | None:
    """Make a rank that was started by hand a rank of this run; others are left as they are.

    Args:
        run: The run directory.
        environment: Gets the variables of the claim and of the place where the ranks meet.

    Returns:
        On rank 0 its claim, to be released when the training is over.

    Raises:
        LaunchError: Somebody else owns the run, or rank 0 did not start.
        ConfigError: The config wants another number of ranks.
        SystemExit: The same, on the other ranks: rank 0 says it.
    """
    group = group_of(environment)
    if group is None or _is_of_batch_script(run, environment):
        return None
    _use_own_code(run)
    config = load_run_config(run.config)
    _require_ranks(run, config, group)
    ownership = None if group.rank else _start(run, config, group, environment)
    entry = _wait_for_start(run, group)
    address, _, port = entry["meet"].rpartition(":")
    environment["MASTER_ADDR"], environment["MASTER_PORT"] = address, port
    # torchrun's own store listens at its own port.
    environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    environment[VARIABLE] = entry["claim"]
    return ownership


def _is_of_batch_script(run: RunDir, environment: Mapping[str, str]) -> bool:
    """Return whether `begin` has recorded an attempt for this start of the job."""
    attempt = history.read(run.journal).open
    if attempt is None or attempt.job_id is None:
        return False
    restarts = int(environment.get("SLURM_RESTART_COUNT") or 0)
    return (attempt.job_id, attempt.restarts) == (environment.get("SLURM_JOB_ID"), restarts)


def _use_own_code(run: RunDir) -> None:
    """Run this program again from the run's copy of the code, unless it is that already."""
    own = run.code / "llada_sft"
    package = Path(llada_sft.__file__).parent
    if not own.is_dir() or package.resolve() == own.resolve():
        return
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, [str(run.code), inherited]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-u", "-m", "llada_sft.cluster", "rank", str(run.path)]
    os.execve(sys.executable, command, environment)


def _require_ranks(run: RunDir, config: Config, group: Group) -> None:
    """Check that as many ranks were started as the config says; only rank 0 says so."""
    per_node = config.slurm.ranks_per_node
    allowed = [nodes * per_node for nodes in config.slurm.node_range]
    if group.world_size in allowed:
        return
    if group.rank:
        # torchrun, or srun with --kill-on-bad-exit, ends this rank when rank 0 has said it; if this
        # rank left first, they would end rank 0 before.
        time.sleep(GRACE_S)
        raise SystemExit(EXIT_CODE)
    counts = " to ".join(map(str, dict.fromkeys((allowed[0], allowed[-1]))))
    raise LaunchError(
        f"{run.config}: slurm.nodes × slurm.ranks_per_node = {counts} ranks, but"
        f" {group.world_size} were started: start {counts}, or prepare the run again with"
        " --nodes and slurm.ranks_per_node as they are here"
    )


def _start(run: RunDir, config: Config, group: Group, environment: Mapping[str, str]) -> Ownership:
    """Claim the run, and record the attempt with what the other ranks need."""
    ownership = claim(run, _claimant(run, config, environment))
    host = environment.get("SLURMD_NODENAME", "127.0.0.1")
    entry: Entry = {
        "group": group.name,
        "meet": f"{host}:{free_port()}",
        "claim": ownership.word,
    }
    journal.append(run.journal, {"event": "launched"})
    supervisor.begin(run, None, group.world_size, group.nodes, entry)
    # The rank keeps it from here on.
    forget(ownership)
    return ownership


def _claimant(run: RunDir, config: Config, environment: Mapping[str, str]) -> Owner:
    """Return this process; or its job, if that has prepared the run in its batch script."""
    if job_id := environment.get("SLURM_JOB_ID"):
        job = job_owner(job_id, int(environment.get("SLURM_RESTART_COUNT") or 0))
        owner = owner_files.find(run.path).owner
        if owner is not None and owner.is_same_attempt(job):
            return job
    return this_process("training", config.run.owner_timeout_s)


def _wait_for_start(run: RunDir, group: Group) -> Entry:
    """Return the entry with which rank 0 has started the attempt.

    Raises:
        LaunchError: There is none after WAIT_S.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        attempt = history.read(run.journal).open
        if attempt is not None and attempt.started.get("group") == group.name:
            return attempt.started
        time.sleep(POLL_S)
    raise LaunchError(
        f"rank {group.rank}: rank 0 did not start within {WAIT_S:g} s: its output says why"
    )
