"""SLURM's words for the state of a job: will it run again, and what should a person do?

scontrol shows a base state (RUNNING), or in its place what is being done to the job (COMPLETING).
Newer versions may show both, joined by commas.

Source: "Job State Codes" in SLURM's documentation, 22.05 to 25.11.
"""

from collections.abc import Mapping

# A job in one of these will not run again by itself. (A requeued job is PENDING.)
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"}
    | {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
# Shown next to the state of a job that has ended; they do not change its meaning.
_REMARKS = frozenset({"LAUNCH_FAILED", "RECONFIG_FAIL", "UPDATE_DB"})
# SLURM ends the job's processes, or has ended them.
_ENDING = ENDED | {"COMPLETING", "STAGE_OUT", "REVOKED"}
# Requeued by SLURM: it runs again at once, later, or when a person releases it.
_REQUEUED = frozenset({"EXPEDITING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
_RELEASE = "to let it run again:  scontrol release {job}"
_WHAT_TO_DO = {
    "REQUEUE_HOLD": f"requeued and held; {_RELEASE}",
    "SPECIAL_EXIT": f"requeued and held after its exit code; {_RELEASE}",
    "RESV_DEL_HOLD": "held, for its reservation was deleted; to let it run without one:"
    "  scontrol update JobId={job} ReservationName= ; scontrol release {job}",
    "SUSPENDED": "its ranks are suspended until SLURM, or an operator's  scontrol resume {job},"
    " continues them",
    "STOPPED": "its ranks were stopped by a signal; to continue them:  scancel --signal=CONT {job}",
    "EXPEDITING": "requeued after its node failed, and the next to start",
    "REQUEUED": "will be pending when its nodes are cleaned up",
    "REQUEUE_FED": "requeued on another cluster:  squeue --federation",
    "REVOKED": "started on another cluster:  squeue --federation",
    "STAGE_OUT": "its files are being staged out",
}
# Reasons of a pending job that waits for a person.
_HELD = frozenset(
    {"JobHeldUser", "JobHeldAdmin", "job_requeued_in_held_state", "launch_failed_requeued_held"}
)


def has_ended(state: str) -> bool:
    """Return whether a job in this state is over for good."""
    words = _words(state)
    return bool(words & ENDED) and words <= ENDED | _REMARKS


def is_ending(state: str) -> bool:
    """Return whether SLURM is ending a job or has ended it; an unknown word says neither."""
    return bool(_words(state) & _ENDING)


def is_requeued(fields: Mapping[str, str], restarts_before: int) -> bool:
    """Return whether SLURM has requeued a job since an attempt of it started.

    Args:
        fields: What `scontrol show job` says.
        restarts_before: SLURM's count of its restarts when the attempt started.
    """
    restarts = fields.get("Restarts", "")
    if restarts.isdecimal() and int(restarts) > restarts_before:
        return True
    return bool(_words(fields.get("JobState", "")) & _REQUEUED)


def described(job_id: str, fields: Mapping[str, str]) -> str:
    """Describe a job's state, and what a person should do about it, if anything."""
    state = fields.get("JobState", "")
    if not state:
        return f"{job_id} no longer known to SLURM"
    advice = [_WHAT_TO_DO[word] for word in state.split(",") if word in _WHAT_TO_DO]
    if not advice and fields.get("Reason") in _HELD:
        advice = [f"held ({fields['Reason']}); {_RELEASE}"]
    more = ": " + "; ".join(advice).format(job=job_id) if advice else ""
    return f"{job_id} {state}{more}"


def _words(state: str) -> frozenset[str]:
    return frozenset(state.split(",")) - {""}
