"""The processes of one test cluster: found in /proc, killed, waited for.

Pid files go stale and slurmstepd writes none, so a process counts as the cluster's when its
command line names the state directory (munged, slurmctld, slurmd, mariadbd) or its environment
names that directory's slurm.conf (slurmdbd, slurmstepd, and whatever a job started).
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.1


def wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Poll `done` until it holds; False when the time is over and it still does not."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def read_words(file: Path) -> list[str]:
    """Read the NUL-separated words of a /proc file: "" alone when the process is gone."""
    try:
        return file.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]


def belongs_to(state_dir: Path, process: Path) -> bool:
    """Say whether a process (its folder in /proc) is a daemon or a job of this cluster."""
    command = read_words(process / "cmdline")
    if Path(command[0]).name in ("munged", "slurmctld", "slurmd", "mariadbd"):
        return any(f"{state_dir}/" in word for word in command)
    environment = read_words(process / "environ")
    if f"SLURM_CONF={state_dir}/slurm.conf" not in environment:
        return False
    # A shell that exported SLURM_CONF to talk to the cluster is no part of it.
    is_job = any(word.startswith("SLURM_JOB_ID=") for word in environment)
    daemons = ("slurmdbd", "slurmstepd", "slurmscriptd")
    return is_job or command[0].lstrip(": ").startswith(daemons)


def find_processes(state_dir: Path) -> list[int]:
    """List the pids of a cluster's live processes."""
    folders = (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())
    pids = (int(folder.name) for folder in folders if belongs_to(state_dir, folder))
    return sorted(pid for pid in pids if pid != os.getpid())


def kill_processes(state_dir: Path, timeout_s: float) -> list[int]:
    """Kill a cluster's processes, also those that they start meanwhile; return the survivors."""

    def all_gone() -> bool:
        pids = find_processes(state_dir)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not pids

    wait_until(all_gone, timeout_s)
    return find_processes(state_dir)
