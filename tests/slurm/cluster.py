"""A real SLURM of four nodes with two GPUs each on this machine, for the tests.

One munged, one slurmctld and a slurmd per node, all from Debian's packages, run as root and need
no systemd; the GPUs are names for /dev/zero. Everything a cluster writes lies in one state
directory under the temporary folder, one per checkout and purpose, so that two checkouts may run
their tests at once. Only the logs and node1 … node4 in /etc/hosts stay after a stop.

The profile `accounting` adds slurmdbd and MariaDB (accounting.py): with it sacct answers.

    python tests/slurm/cluster.py start     # then: export SLURM_CONF=…, as it prints
    python tests/slurm/cluster.py start --profile accounting
    python tests/slurm/cluster.py status
    python tests/slurm/cluster.py stop
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self, get_args

import accounting
from network import add_host_names, find_free_ports
from processes import find_processes, kill_processes, wait_until

Profile = Literal["plain", "accounting"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
# What the tests run against when nothing else is said.
PROFILE_VARIABLE = "LLADA_SFT_SLURM_PROFILE"
NAME = "llada_sft_test"
NODES = ("node1", "node2", "node3", "node4")
GPUS_PER_NODE = 2
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
PACKAGES = ("slurm-wlm", "slurmctld", "slurmd", "slurm-client", "munge")
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
COMMAND_TIMEOUT_S = 120
FINAL_STATES = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
LOG_TAIL_LINES = 40


class ClusterError(Exception):
    """The test cluster did not do what it was asked."""


class Cluster:
    """Start and stop a SLURM, and talk to it; a context manager.

    Args:
        name: What it is for. Clusters of one checkout and name exclude each other, and a start
            clears what a crashed one of the same name left behind.
        profile: `accounting` has slurmdbd and sacct, `plain` has not.
        settings: Further lines of slurm.conf.
    """

    def __init__(self, name: str = "tests", profile: Profile = "plain", settings: str = "") -> None:
        self.profile, self._settings = profile, settings
        checkout = hashlib.sha256(str(Path(__file__).resolve()).encode()).hexdigest()[:8]
        # Short: a Unix socket's path has 108 bytes at most.
        self.state_dir = Path(tempfile.gettempdir()).resolve() / f"slurm-{checkout}-{name}"
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @staticmethod
    def missing(profile: Profile = "plain") -> str | None:
        """Say in one sentence what this machine lacks to run a cluster, and what mends it."""
        if sys.platform != "linux":
            return f"a SLURM test cluster needs Linux, and this is {sys.platform}."
        programs, packages = PROGRAMS, PACKAGES
        if profile == "accounting":
            programs, packages = PROGRAMS + accounting.PROGRAMS, PACKAGES + accounting.PACKAGES
        if absent := [name for name in programs if not shutil.which(name, path=SEARCH_PATH)]:
            install = f"apt-get install --no-install-recommends {' '.join(packages)}"
            return (
                f"SLURM is not installed (no {', '.join(absent)}): run  {install}"
                " (.ci/install-slurm does it)"
            )
        if os.geteuid() != 0:
            return "a SLURM test cluster needs root: run the tests as root (a container will do)."
        return None

    @property
    def env(self) -> dict[str, str]:
        """The environment in which SLURM's commands talk to this cluster."""
        return {**os.environ, "PATH": SEARCH_PATH, "SLURM_CONF": f"{self.state_dir}/slurm.conf"}

    def start(self) -> None:
        """Start the daemons and wait until all nodes are idle.

        Raises:
            ClusterError: Something is missing, another process holds this cluster, or the nodes
                are not idle in time; then with the ends of the logs.
        """
        if problem := self.missing(self.profile):
            raise ClusterError(problem)
        self._take_lock()
        self._kill()
        if self.state_dir.exists():
            shutil.rmtree(self.state_dir)
        self._write_files()
        add_host_names(NODES)
        try:
            self._start_daemons()
        except BaseException as error:
            logs = self.logs()
            self.stop()
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ClusterError(f"the test cluster did not start: {error}\n{logs}") from error

    def stop(self) -> None:
        """Kill everything that the cluster runs, jobs included; only the logs stay.

        Raises:
            ClusterError: A process is still there after 30 s.
        """
        self._kill()
        if self._lock:
            self._lock.close()
            self._lock = None

    def is_running(self) -> bool:
        """Say whether processes of this cluster are there."""
        return bool(find_processes(self.state_dir))

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, at first or after it was killed."""
        self.run(["slurmd", "-N", node, "-f", f"{self.state_dir}/slurm.conf"])

    def run(self, args: Sequence[str], cwd: Path | None = None, user: str | None = None) -> str:
        """Run a command against this cluster and return what it printed.

        Raises:
            ClusterError: It failed; with its output.
        """
        result = subprocess.run(
            args,
            env=self.env,
            cwd=cwd,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        if result.returncode != 0:
            output = f"{result.stdout}{result.stderr}".strip()
            raise ClusterError(f"{' '.join(args)}: exit code {result.returncode}: {output}")
        return result.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`, for a job of the last hour."""
        line = self.run(["scontrol", "show", "job", "--oneliner", job_id]).splitlines()[0]
        fields = re.split(r"(?:^| )([A-Z][\w:/]*)=", line)[1:]
        return {key: value.strip() for key, value in zip(fields[::2], fields[1::2], strict=True)}

    def wait_job(
        self, job_id: str, states: Sequence[str], timeout_s: float, restarts: int = 0
    ) -> dict[str, str]:
        """Wait until a job was restarted that often and is in one of the states.

        Raises:
            ClusterError: The time is over, or the job ended in another state.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            state = job["JobState"]
            if state in states and int(job["Restarts"]) >= restarts:
                return job
            if state in FINAL_STATES or time.monotonic() > deadline:
                wanted = f"{' or '.join(states)}, Restarts>={restarts}, in {timeout_s:g} s"
                raise ClusterError(f"job {job_id}: wanted {wanted}; got {job}")
            time.sleep(0.5)

    def logs(self) -> str:
        """Return the last lines of every daemon's log."""
        parts = []
        for file in sorted(self.state_dir.glob("*/*log*")):
            lines = file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            parts.append("\n".join([f"==> {file} <==", *lines]))
        return "\n".join(parts)

    def _take_lock(self) -> None:
        lock = self.state_dir.with_name(f"{self.state_dir.name}.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ClusterError(f"{lock.name}: another process runs this cluster") from error
        self._lock = lock

    def _kill(self) -> None:
        # Nothing is worth saving, so no daemon is asked to finish in order.
        if survivors := kill_processes(self.state_dir, STOP_TIMEOUT_S):
            raise ClusterError(f"processes of {self.state_dir} cannot be killed: {survivors}")

    def _write_files(self) -> None:
        for folder in ("munge", "state", "spool", "pids", "logs", "gpus"):
            (self.state_dir / folder).mkdir(parents=True)
        self.state_dir.chmod(0o755)
        shutil.chown(self.state_dir / "munge", "munge", "munge")
        for index in range(GPUS_PER_NODE):
            # Of plain files SLURM counts the GPUs but sets no CUDA_VISIBLE_DEVICES. Not /dev/null:
            # a program that runs as root can replace that with a file by mistake.
            (self.state_dir / "gpus" / f"gpu{index}").symlink_to("/dev/zero")
        gpus = f"File={self.state_dir}/gpus/gpu[0-{GPUS_PER_NODE - 1}]"
        gres = f"NodeName={','.join(NODES)} Name=gpu {gpus}\n"
        (self.state_dir / "gres.conf").write_text(gres)
        template = string.Template(Path(__file__).with_name("slurm.conf.in").read_text())
        port = find_free_ports(2 + len(NODES))
        accounting_lines = "AccountingStorageType=accounting_storage/none"
        if self.profile == "accounting":
            dbd_port = port + 1 + len(NODES)
            accounting.write_files(self.state_dir, dbd_port)
            accounting_lines = accounting.CLUSTER_LINES.substitute(
                state_dir=self.state_dir, port=dbd_port
            )
        config = template.substitute(
            name=NAME,
            accounting=accounting_lines,
            hostname=socket.gethostname().split(".")[0],
            state_dir=self.state_dir,
            port=port,
            num_nodes=len(NODES),
            first_node_port=port + 1,
            last_node_port=port + len(NODES),
        )
        (self.state_dir / "slurm.conf").write_text(config + self._settings)

    def _start_daemons(self) -> None:
        munge = self.state_dir / "munge"
        self.run(["mungekey", "--create", f"--keyfile={munge}/key-file"], user="munge")
        files = ("key-file", "socket", "pid-file", "seed-file", "log-file")
        self.run(["munged", *(f"--{file}={munge}/{file}" for file in files)], user="munge")
        if self.profile == "accounting":
            accounting.start(self.state_dir, self.env, self.run, NAME)
        self.run(["slurmctld", "-f", f"{self.state_dir}/slurm.conf"])
        for node in NODES:
            self.start_node(node)
        if not wait_until(self._all_idle, START_TIMEOUT_S):
            raise ClusterError(f"not all nodes are idle after {START_TIMEOUT_S} s")

    def _all_idle(self) -> bool:
        # Unchecked: sinfo fails where slurmctld does not answer yet.
        args = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T"]
        result = subprocess.run(args, env=self.env, capture_output=True, text=True)
        return result.stdout.splitlines() == [f"{node} idle" for node in NODES]


def wanted_profile() -> Profile:
    """Return the profile that the environment asks for.

    Raises:
        ClusterError: There is no such profile.
    """
    wanted = os.environ.get(PROFILE_VARIABLE, "plain")
    for profile in PROFILES:
        if wanted == profile:
            return profile
    raise ClusterError(f"{PROFILE_VARIABLE}: must be {' or '.join(PROFILES)}, got {wanted!r}")


def main() -> int:
    """Start, stop or show the cluster that is meant for trying things by hand."""
    parser = argparse.ArgumentParser(description="A SLURM of four nodes on this machine.")
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--profile", choices=PROFILES, default="plain", help="of start")
    options = parser.parse_args()
    action, cluster = options.action, Cluster("shell", options.profile)
    try:
        if action == "start":
            cluster.start()
            print(f"export SLURM_CONF={cluster.state_dir}/slurm.conf")
        elif action == "stop":
            cluster.stop()
        else:
            print(cluster.run(["sinfo"]) if cluster.is_running() else "not running")
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
