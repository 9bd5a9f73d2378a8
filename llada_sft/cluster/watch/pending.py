"""Why a job is pending, in plain words, and when SLURM expects it to start.

Source: "Job Reason Codes" in SLURM's documentation, 22.05 to 25.11.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

# Reason -> what it means, and what to do, if anything.
_REASONS = {
    "Priority": "jobs of higher priority are before it: nothing to do but wait",
    "Resources": "it is among the next to start, and waits for nodes to become free",
    "None": "SLURM has not looked at it yet",
    "Dependency": "another job must end first",
    "DependencyNeverSatisfied": "the job that it depends on failed: it never starts; cancel it",
    "BeginTime": "it was asked to start later (--begin), or was requeued a moment ago",
    "Cleaning": "its nodes are being cleaned up after its last attempt",
    "JobHeldUser": "you hold it; to release it:  scontrol release {job}",
    "JobHeldAdmin": "an administrator holds it: ask them",
    "JobArrayTaskLimit": "as many tasks of its array run as its limit allows",
    "ReqNodeNotAvail": "nodes that it needs are down, drained, or reserved for maintenance",
    "NodeDown": "a node that it asks for is down",
    "BadConstraints": "no node can satisfy its options: it never starts; cancel it",
    "Licenses": "licenses that it needs are in use",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": "its reservation was deleted: it never starts; cancel it",
    "PartitionDown": "its partition takes jobs and starts none: ask the administrators",
    "PartitionInactive": "its partition starts no jobs: ask the administrators, or use another",
    "PartitionNodeLimit": "slurm.nodes is outside its partition's limits: it never starts so",
    "PartitionTimeLimit": "slurm.time_min is above its partition's limit: it never starts so",
    "InvalidAccount": "its account is not valid: set slurm.account",
    "InvalidQOS": "its qos is not valid: set slurm.qos",
    "QOSNotAllowed": "its account or partition does not allow its qos: set slurm.qos",
    "AccountNotAllowed": "its partition does not allow its account: set slurm.account",
    "QOSTimeLimit": "its qos has used up its time",
    "QOSUsageThreshold": "its usage is above the threshold of its qos",
    "AssociationTimeLimit": "its account has used up its time",
    "NonPreemptingPriority": "jobs of higher priority are before it: nothing to do but wait",
    "SystemFailure": "SLURM itself failed: ask the administrators",
    "job_requeued_in_held_state": "requeued and held; to release it:  scontrol release {job}",
    "launch_failed_requeued_held": "its start failed on a node, and it is held; to release it:"
    "  scontrol release {job}",
}
# Families of reasons, by their beginnings; the rest of the word names what is limited.
_FAMILIES = (
    ("AssocGrp", "all jobs of your account together are at its limit: wait until some end"),
    ("AssocMax", "it is above what your account allows a job or a user: wait, or ask for less"),
    ("QOSGrp", "all jobs of its qos together are at its limit: wait until some end"),
    (
        "QOSMaxJobs",
        "you run as many jobs of its qos as it allows: it starts when one of them ends",
    ),
    ("QOSMaxSubmit", "you have as many jobs of its qos as it allows"),
    ("QOSMax", "it is above what its qos allows a job or a user: wait, or ask for less"),
    ("QOSMin", "it asks for less than its qos requires: it never starts so"),
    ("MaxJobs", "as many jobs run as your account allows: it starts when one of them ends"),
    ("MaxMemPerLimit", "its memory is above its partition's limit: lower slurm.mem_gb_per_node"),
    ("ReqNodeNotAvail", _REASONS["ReqNodeNotAvail"]),
    ("BurstBuffer", "its burst buffer is not ready"),
    ("Partition", "a limit of its partition"),
    ("Nodes_required_for_job_are_DOWN", _REASONS["ReqNodeNotAvail"]),
)


def reason_of(fields: Mapping[str, str]) -> str:
    """Return SLURM's word for why a job is pending; empty if it says none."""
    word = fields.get("Reason", "").strip("()")
    # "ReqNodeNotAvail,_UnavailableNodes:node3"
    return word if word not in ("", "null") else ""


def in_words(reason: str, job_id: str) -> str:
    """Return what a reason means and what to do; a reason that is not known is passed on."""
    known = _REASONS.get(reason) or next(
        (text for beginning, text in _FAMILIES if reason.startswith(beginning)), ""
    )
    # SLURM's "None" is no word that a person could look up.
    word = "" if reason == "None" else f"{reason}: "
    return f"{word}{known.format(job=job_id)}" if known else reason


def start_time(fields: Mapping[str, str]) -> float | None:
    """Return when SLURM expects a pending job to start, in seconds since 1970; None if unknown."""
    start = fields.get("StartTime", "")
    return float(start) if start.isascii() and start.isdecimal() and len(start) < 12 else None


def start_line(start: float | None, now: float) -> str:
    """Return when a pending job starts, by SLURM's estimate."""
    if start is None:
        return "no estimate yet"
    minutes, hours = round((start - now) / 60), round((start - now) / 3600)
    away = f"{hours} h" if hours >= 2 else f"{max(0, minutes)} min"
    return f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M} UTC, in {away} (SLURM's estimate)"
