"""Who owns a run: what an owner file says, and the line that names an owner.

An owner is a SLURM job (id and restart count), a process of a host, or nobody, once the run was
released. `liveness.py` decides whether an owner is dead; `owner_files.py` reads and writes the
files; `claim.py` and `ownership.py` claim and release runs.
"""

import getpass
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Kind = Literal["process", "job", "nobody"]
# What a process does with the run: a job waits for a launcher that may be about to hand it over.
Doing = Literal["training", "launching", "preparing"]
DEFAULT_TIMEOUT_S = 180

_VERBS = {"training": "trained", "launching": "being launched", "preparing": "being prepared"}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_JOB_ID = re.compile(r"(?:[0-9]+(?:[_+][0-9]+)?)?")
# From this number on, a job's number contains the number of a cluster of a federation.
_FEDERATED = 1 << 26
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True)
class Owner:
    """The content of an owner file; `asdict` is its JSON.

    Attributes:
        token: Distinguishes this claim from all others.
        kind: What owns the run.
        since: When the run was claimed; only shown to people.
        user: Who claimed the run.
        timeout_s: A process that cannot be seen is dead after this time without a sign of life.
        doing: What a process does with the run.
        job_id: SLURM's number of a job, or of the job that a process runs in.
        restarts: How often SLURM had restarted that job.
        cluster: SLURM's name of the job's cluster, if it is known.
        host: The host name of the process.
        machine: /etc/machine-id of the host: two hosts may have the same name.
        boot_id: The id of the host's last boot.
        pid_namespace: The pid namespace of the process: a container has its own.
        pid: The pid of the process.
        start_time: When the process started, in clock ticks since the boot: pids are reused.
        path: The path of the run directory, as the owner saw it.
        inode: The inode of the run directory. If path and inode both differ, it is a copy.
    """

    token: str
    kind: Kind
    since: str = ""
    user: str = ""
    timeout_s: int = DEFAULT_TIMEOUT_S
    doing: Doing = "training"
    job_id: str = ""
    restarts: int = 0
    cluster: str = ""
    host: str = ""
    machine: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    start_time: str = ""
    path: str = ""
    inode: int = 0

    @staticmethod
    def from_json(content: Any) -> "Owner":
        """Read an owner; keys that this version does not know are ignored.

        Raises:
            ValueError: The content is not an owner.
        """
        if not isinstance(content, dict) or not content.get("token"):
            raise ValueError("not an owner")
        if content.get("kind") not in ("process", "job", "nobody"):
            raise ValueError(f"not an owner: kind {content.get('kind')!r}")
        known = {
            field.name: content[field.name] for field in fields(Owner) if field.name in content
        }
        for name, value in known.items():
            wanted = int if name in ("timeout_s", "restarts", "pid", "inode") else str
            if type(value) is not wanted:
                raise ValueError(f"{name} must be of type {wanted.__name__}")
        # The job id is passed to scontrol, and shown to people in a command.
        if not _JOB_ID.fullmatch(known.get("job_id", "")):
            raise ValueError(f"not an owner: job_id {known['job_id']!r}")
        return Owner(**known)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def is_same_attempt(self, other: "Owner") -> bool:
        """Return whether both are the same start of the same job."""
        return (
            self.kind == other.kind == "job"
            and self.is_same_job(other)
            and self.restarts == other.restarts
        )

    def is_same_job(self, other: "Owner") -> bool:
        """Return whether both run in one SLURM job, whatever its restart count."""
        if not self.job_id or self.job_id != other.job_id:
            return False
        # Job numbers of a federation are unique, and a job may start on any of its clusters.
        federated = self.job_id.isdecimal() and int(self.job_id) >= _FEDERATED
        known = bool(self.cluster) and bool(other.cluster)
        return federated or not known or self.cluster == other.cluster


def describe_owner(owner: Owner, job: Mapping[str, str]) -> str:
    """Return an owner in a few words: "job 1, RUNNING on node[1-2] since 2026-11-26 01:00 UTC".

    Args:
        owner: The owner to describe.
        job: The fields of `scontrol show job`, if they are known.
    """
    if owner.kind == "nobody":
        return "nobody"
    if owner.kind == "process":
        return f"process {owner.pid} on host {owner.host} since {owner.since}"
    state = job.get("JobState", "")
    nodes = job.get("NodeList", "")
    on_nodes = f" on {nodes}" if nodes not in ("", "(null)") else ""
    started = job.get("StartTime", "") if state != "PENDING" else ""
    since = _utc(int(started)) if started.isdecimal() else owner.since
    return f"job {owner.job_id},{f' {state}' if state else ''}{on_nodes} since {since}"


def refusal(run: Path, owner: Owner, job: Mapping[str, str], silent_s: float = 0.0) -> str:
    """Return the line that refuses a claimant: who owns the run, and what to do.

    Args:
        run: The run directory.
        owner: Its owner.
        job: The fields of `scontrol show job`, if they are known.
        silent_s: Seconds since the owner's last sign of life.
    """
    verb = _VERBS.get(owner.doing, "owned") if owner.kind == "process" else "trained"
    line = f"run {run} is {verb} by {describe_owner(owner, job)}"
    if owner.kind == "job":
        return f"{line}: wait for it, or stop it with  scancel {owner.job_id}"
    if silent_s > owner.timeout_s / 2:
        remaining = max(1, round(owner.timeout_s - silent_s))
        return f"{line}: it has given no sign for {silent_s:.0f} s; try again in {remaining} s"
    return f"{line}: wait for it, or stop it there with  kill -INT {owner.pid}"


def this_process(doing: Doing, timeout_s: int = DEFAULT_TIMEOUT_S) -> Owner:
    """Return this process as an owner."""
    return Owner(
        **_common("process", timeout_s),
        doing=doing,
        **_job_of(os.environ),
        pid=os.getpid(),
        start_time=process_start(os.getpid()) or "",
    )


def this_job(environment: Mapping[str, str], timeout_s: int = DEFAULT_TIMEOUT_S) -> Owner:
    """Return the SLURM job of this process as an owner."""
    return Owner(**_common("job", timeout_s), **_job_of(environment))


def launched_job(job_id: str, cluster: str, launcher: Owner) -> Owner:
    """Return a job that a launcher has submitted as an owner."""
    return Owner(
        _token(),
        "job",
        since=_now(),
        user=launcher.user,
        timeout_s=launcher.timeout_s,
        job_id=job_id,
        cluster=cluster,
        path=launcher.path,
        inode=launcher.inode,
    )


def nobody(last: Owner) -> Owner:
    """Return the owner file's content for a run that its last owner has released."""
    return replace(last, token=_token(), kind="nobody", since=_now())


def process_start(pid: int) -> str | None:
    """Return a process's start time; "" if it may not be read, None if the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "" if _exists(pid) else None
    except OSError:
        return ""
    # The second field is the program's name, which may hold spaces and parentheses.
    fields_ = stat.rpartition(")")[2].split()
    # Fields 3 and 22. A zombie has ended: only its exit code remains.
    return None if fields_[0] in "ZXx" else fields_[19]


def _exists(pid: int) -> bool:
    # /proc may be mounted so that it hides the processes of other users (hidepid).
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _common(kind: Kind, timeout_s: int) -> dict[str, Any]:
    return {
        "token": _token(),
        "kind": kind,
        "since": _now(),
        "user": _user(),
        "timeout_s": timeout_s,
        "host": socket.gethostname(),
        "machine": _line(_MACHINE_ID),
        "boot_id": _line(_BOOT_ID),
        "pid_namespace": _pid_namespace(),
    }


def _job_of(environment: Mapping[str, str]) -> dict[str, Any]:
    restarts = environment.get("SLURM_RESTART_COUNT") or "0"
    return {
        "job_id": environment.get("SLURM_JOB_ID", ""),
        "restarts": int(restarts) if re.fullmatch(r"\d+", restarts) else 0,
        "cluster": environment.get("SLURM_CLUSTER_NAME", ""),
    }


def _token() -> str:
    return uuid.uuid4().hex


def _user() -> str:
    try:
        return getpass.getuser()
    # A container's user may have no name.
    except (KeyError, OSError):
        return str(os.getuid())


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _now() -> str:
    return _utc(datetime.now(UTC).timestamp())


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
