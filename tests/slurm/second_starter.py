"""Starts a run a second time while a job trains it: that must be refused, and change nothing."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import FINAL_STATES, Cluster
from processes import wait_until

from llada_sft.errors import EXIT_CODE
from llada_sft.run_dir import RunDir

# Its job may have to wait for a node.
REFUSED_TIMEOUT_S = 120


@dataclass(frozen=True)
class Starter:
    """A command that starts a run, which another job trains.

    Attributes:
        command: With its arguments.
        folder: Where it is called.
        submits: It submits a job, which is to be refused; else the command is.
    """

    command: Sequence[str]
    folder: Path
    submits: bool = False


def start_again(cluster: Cluster, run: RunDir, starter: Starter) -> str | None:
    """Start a run that is being trained; say what else happened than that it was refused."""
    before = _left_alone(run)
    code = (_submitted if starter.submits else _called)(cluster, starter)
    what = " ".join(starter.command)
    if code != EXIT_CODE:
        return f"{what}: must be refused with exit code {EXIT_CODE}, got {code}"
    if _left_alone(run) != before:
        return f"{what}: was refused, but changed the run directory"
    return None


def _called(cluster: Cluster, starter: Starter) -> int:
    return subprocess.run(
        starter.command, cwd=starter.folder, env=cluster.env, timeout=REFUSED_TIMEOUT_S
    ).returncode


def _submitted(cluster: Cluster, starter: Starter) -> int:
    """Give the exit code of the job that a command submits."""
    job = cluster.run([*starter.command], starter.folder).strip()

    def ended() -> bool:
        return cluster.job(job)["JobState"] in FINAL_STATES

    if not wait_until(ended, REFUSED_TIMEOUT_S):
        cluster.run(["scancel", job])
        return -1
    return int(cluster.job(job)["ExitCode"].partition(":")[0])


def _left_alone(run: RunDir) -> tuple[bytes, bytes, list[bytes], list[str]]:
    """Give what nobody but a run's owner changes, and its owner only when an attempt begins."""
    starts = (b'"launched"', b'"started"', b'"changed"')
    lines = run.journal.read_bytes().splitlines()
    return (
        run.config.read_bytes(),
        run.command.read_bytes(),
        [line for line in lines if any(word in line for word in starts)],
        sorted(path.name for path in run.path.glob("owner.*")),
    )
