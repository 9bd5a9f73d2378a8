"""SLURM's own commands, asked directly: sacct may not be there, squeue and scontrol are.

submitit's job states come from sacct, and without it are UNKNOWN for ever.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from llada_sft.errors import LaunchError

# The timeout of one query, if nobody waits at a terminal.
TIMEOUT_S = 60
# The timeout of all queries together of a command that a person waits for.
PATIENCE_S = 10.0
# The seconds that are left of it; empty if nobody waits.
_patience: list[float] = []
# Of nodes that start no job until a person does something; `sinfo` may add a character to a state.
_OUT_OF_SERVICE = ("down", "drain", "fail", "future", "inval", "unk")
# A job's name is free text: it may have spaces, and look like a field.
_JOB_NAME = re.compile(r"\bJobName=.*? (?=(?:HetJobIdSet=\S* )?UserId=\S+\(\d+\) )")
_FIELD = re.compile(r"(?:^|\s)([A-Z][\w/:]*)=(\S*)")
# Formats, filters and other options of the tools, as variables.
_OF_A_TOOL = re.compile(r"(?:SQUEUE|SACCT|SINFO|SCONTROL|SCANCEL)_|SLURM_BITSTR_LEN$")
# What scontrol calls the fields of squeue's --format.
_SQUEUE_FIELDS = {"JobId": "i", "JobState": "T", "StartTime": "S", "NodeList": "N", "Reason": "r"}
EXCLUDE_TRIES = 8
EXCLUDE_PAUSE_S = 0.3


@dataclass(frozen=True)
class Job:
    """A SLURM job.

    Attributes:
        job_id: SLURM's number.
        restarts: SLURM's count of its restarts when the attempt started.
    """

    job_id: str
    restarts: int


@contextmanager
def patience(seconds: float | None = None) -> Iterator[None]:
    """Limit the time of all queries of a block together: a person waits for them.

    Args:
        seconds: None means PATIENCE_S. A block inside another one has its own limit.
    """
    before = _patience.copy()
    _patience[:] = [seconds or PATIENCE_S]
    try:
        yield
    finally:
        _patience[:] = before


def patience_left() -> float:
    """Return the timeout of the next query, in seconds."""
    return min([TIMEOUT_S, *_patience])


def run_tool(*command: str, timeout_s: float | None = None) -> str:
    """Run a SLURM command and give its output; without a `timeout_s`, wait for TIMEOUT_S.

    Raises:
        LaunchError: It is not there, fails, or does not answer.
    """
    timeout_s = min(timeout_s or TIMEOUT_S, patience_left())
    begin = time.monotonic()
    try:
        code, out, errors = _run(command, timeout_s)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} not found on this machine") from None
    except OSError as error:
        raise LaunchError(f"{command[0]}: cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{' '.join(command)}: no answer in {timeout_s:g} s; try again") from None
    finally:
        # The rest is for the next query: at least a moment, so that it fails with its own message.
        _patience[:] = [max(0.1, left - (time.monotonic() - begin)) for left in _patience]
    if code:
        reason = " ".join((errors or out).split()) or f"exit code {code}"
        raise LaunchError(f"{' '.join(command)}: {reason}")
    return out


def _run(command: Sequence[str], timeout_s: float) -> tuple[int, str, str]:
    """Run a command in a process group of its own, and end the whole group if it takes too long.

    If the command is a shell script, a process that it started would keep the pipes open, and
    Python would wait for that one.
    """
    with subprocess.Popen(
        command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, errors


def _environment() -> dict[str, str]:
    """Return the environment of a query: without what the user has set for these tools.

    Times are seconds since 1970: no time zone.
    """
    inherited = {name: value for name, value in os.environ.items() if not _OF_A_TOOL.match(name)}
    return {**inherited, "SLURM_TIME_FORMAT": "%s"}


def parse_fields(line: str) -> dict[str, str]:
    """Read a line of `scontrol --oneliner`; values are read up to their first space.

    The name of a job is dropped. Of a field that appears twice, the first is taken: the free texts
    that a user may have written (SubmitLine, Comment, paths) follow the fields that SLURM writes.
    """
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(_JOB_NAME.sub("", line, count=1)):
        fields.setdefault(name, value)
    return fields


def job_fields(job_id: str, timeout_s: float | None = None) -> dict[str, str]:
    """Return what `scontrol show job` says; empty for a job that SLURM has forgotten.

    Raises:
        LaunchError: `scontrol` is missing or does not answer.
    """
    try:
        text = run_tool("scontrol", "--oneliner", "show", "job", job_id, timeout_s=timeout_s)
    except LaunchError as error:
        if _is_forgotten(error):
            return {}
        raise
    jobs = [parse_fields(line) for line in text.splitlines()]
    # For the task whose id is that of its array, scontrol shows all tasks; for the first part of a
    # heterogeneous job, all parts.
    of_job = [fields for fields in jobs if fields.get("JobId") == job_id]
    return next(iter(of_job or jobs), {})


def job_table(job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what SLURM says of many jobs, in one question; without those that it has forgotten.

    Args:
        job_ids: The jobs; without any, SLURM is not asked.

    Returns:
        The fields of each job, under the names that `scontrol show job` has for them.

    Raises:
        LaunchError: `squeue` is missing or does not answer.
    """
    if not job_ids:
        return {}
    formats = "|".join(f"%{letter}" for letter in _SQUEUE_FIELDS.values())
    command = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(job_ids)}")
    try:
        text = run_tool(*command, f"--format={formats}")
    except LaunchError as error:
        # squeue says so if it knows none of them.
        if _is_forgotten(error):
            return {}
        raise
    rows = (line.split("|") for line in text.splitlines())
    jobs = [
        dict(zip(_SQUEUE_FIELDS, row, strict=True))
        for row in rows
        if len(row) == len(_SQUEUE_FIELDS)
    ]
    return {fields["JobId"]: fields for fields in jobs}


def _is_forgotten(error: LaunchError) -> bool:
    return "Invalid job id" in str(error)


def cluster_name(timeout_s: float | None = None) -> str:
    """Return the name of the cluster that answers here.

    Raises:
        LaunchError: `scontrol` is missing or does not answer.
    """
    return _setting("ClusterName", timeout_s)


def hides_jobs(timeout_s: float | None = None) -> bool:
    """Return whether this cluster hides the jobs of other users.

    Raises:
        LaunchError: `scontrol` is missing or does not answer.
    """
    return "jobs" in _setting("PrivateData", timeout_s).split(",")


def _setting(name: str, timeout_s: float | None) -> str:
    """Return a value of slurm.conf; empty where there is none."""
    text = run_tool("scontrol", "show", "config", timeout_s=timeout_s)
    match = re.search(rf"^{name}\s*=\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else ""


def requeue(job_id: str) -> None:
    """Put the job back into the queue; SLURM then ends what runs of it."""
    run_tool("scontrol", "requeue", job_id)


def cancel(job_id: str) -> None:
    """Cancel a job: it saves, and is not requeued."""
    run_tool("scancel", job_id)


def hostnames(nodes: str) -> list[str]:
    """Expand a node list: "node[1-2],gpu7" -> node1, node2, gpu7.

    Raises:
        LaunchError: `scontrol` is missing or does not answer.
    """
    if nodes in ("", "(null)", "None"):
        return []
    return run_tool("scontrol", "show", "hostnames", nodes).split()


def usable_nodes(partition: str) -> list[str]:
    """List the nodes of a partition that SLURM may give to a job, now or later.

    Raises:
        LaunchError: `sinfo` is missing or does not answer.
    """
    states = _node_states(f"--partition={partition}")
    return [node for node, state in states.items() if is_in_service(state)]


def _node_states(which: str) -> dict[str, str]:
    """Return the state of each node, as `sinfo` writes it; of two partitions, each node once."""
    text = run_tool("sinfo", "--noheader", "--Node", which, "--format=%N %T")
    columns = map(str.split, text.splitlines())
    return {line[0]: line[1] for line in columns if len(line) > 1}


def node_hosts() -> set[str]:
    """Return the hosts of all nodes of the cluster; one host may be several nodes.

    Raises:
        LaunchError: `sinfo` is missing or does not answer.
    """
    return set(run_tool("sinfo", "--noheader", "--Node", "--all", "--format=%n").split())


def is_in_service(state: str) -> bool:
    """Return whether a node in this state, as `sinfo` writes it, starts jobs by itself."""
    return not state.lower().startswith(_OUT_OF_SERVICE)


def lost_nodes(nodes: str) -> list[str]:
    """List those of a job's nodes that SLURM has lost; it may take minutes to see it.

    Raises:
        LaunchError: `sinfo` is missing or does not answer.
    """
    if not nodes:
        return []
    states = _node_states(f"--nodes={nodes}")
    return sorted(node for node, state in states.items() if state.startswith("down"))


def exclude(job_id: str, node: str) -> None:
    """Exclude a node from a job's next start, in addition to those that are excluded already.

    Right after `scontrol requeue`, from the job's own batch script: on 22.05.8 a running job's list
    cannot change, that of a requeued one can from the moment that it is COMPLETING, and stays over
    further requeues. The list is read back: an update that was accepted in the very moment of the
    requeue was seen to be missing.

    Raises:
        LaunchError: SLURM does not do it.
    """
    problem = f"job {job_id}: SLURM does not take node {node} into ExcNodeList"
    for _ in range(EXCLUDE_TRIES):
        excluded = hostnames(job_fields(job_id).get("ExcNodeList", ""))
        if node in excluded:
            return
        try:
            new = ",".join([*excluded, node])
            run_tool("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={new}")
        except LaunchError as error:
            problem = str(error)
        time.sleep(EXCLUDE_PAUSE_S)
    raise LaunchError(problem)
