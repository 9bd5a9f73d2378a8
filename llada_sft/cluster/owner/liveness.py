"""Whether an owner of a run is dead: pure functions of what was seen of it.

A process can be seen only from its own host, boot and pid namespace. From anywhere else it is dead
when its file was not touched for `timeout_s` (`run.owner_timeout_s`), by the file server's clock.
A job is dead only if SLURM says so, and never while SLURM does not answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llada_sft.cluster import job_states
from llada_sft.cluster.owner.identity import Owner


@dataclass(frozen=True)
class Seen:
    """What a claimant can see of an owner.

    Attributes:
        process: Whether the owner's process is alive; `unknown` if it cannot be seen.
        silent_s: Seconds since the owner touched its file, by the file server's clock.
        job: What SLURM says of the owner's job; `alive` also if SLURM does not answer.
        copied: Whether the owner file was copied together with the run directory.
    """

    process: Literal["alive", "gone", "unknown"] = "unknown"
    silent_s: float = 0.0
    job: Literal["alive", "over"] = "alive"
    copied: bool = False


def is_dead(owner: Owner, claimant: Owner, seen: Seen) -> bool:
    """Decide whether a run may be taken from its owner.

    Args:
        owner: The owner that the highest owner file names.
        claimant: The process or job that claims the run.
        seen: What the claimant sees of the owner.
    """
    if owner.kind == "nobody" or seen.copied:
        return True
    # SLURM ends all processes of a job before it restarts the job.
    if owner.is_same_job(claimant) and owner.restarts < claimant.restarts:
        return True
    if owner.kind == "job":
        return seen.job == "over"
    if seen.process != "unknown":
        return seen.process == "gone"
    if seen.job == "over" or was_rebooted(owner, claimant):
        return True
    return seen.silent_s > owner.timeout_s


def is_visible(owner: Owner, claimant: Owner) -> bool:
    """Return whether the claimant sees the owner's process under the owner's pid."""
    return (
        bool(owner.boot_id)
        and owner.boot_id == claimant.boot_id
        and owner.pid_namespace == claimant.pid_namespace
    )


def was_rebooted(owner: Owner, claimant: Owner) -> bool:
    """Return whether the owner ran on the claimant's host before its last boot."""
    same_host = (owner.host, owner.machine) == (claimant.host, claimant.machine)
    # Container images have no machine id, and host names of containers are reused.
    known = bool(owner.boot_id) and bool(owner.machine)
    return same_host and known and owner.boot_id != claimant.boot_id


def job_is_over(job: Mapping[str, str], restarts: int) -> bool:
    """Return whether a job has ended for good, or was restarted after a given start.

    Args:
        job: The fields of `scontrol show job`; empty for a job that SLURM has forgotten.
        restarts: The job's restart count at that start; -1 to ask for the whole job.
    """
    if not job or job_states.has_ended(job.get("JobState", "")):
        return True
    restarts_now = job.get("Restarts", "")
    return restarts >= 0 and restarts_now.isdecimal() and int(restarts_now) > restarts
