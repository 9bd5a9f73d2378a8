"""What can be seen of a run's owner: its process, its SLURM job, and its last sign of life."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from llada_sft.cluster import history, slurm
from llada_sft.cluster.owner import owner_files
from llada_sft.cluster.owner.identity import (
    Owner,
    describe_owner,
    process_start,
    this_process,
)
from llada_sft.cluster.owner.liveness import Seen, is_dead, is_visible, job_is_over
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

# Seconds: a person may be waiting for the answer.
ASK_SLURM_S = 10.0


class Sight(NamedTuple):
    """The owner of a run as it is seen from here, now."""

    number: int
    owner: Owner
    seen: Seen
    job: Mapping[str, str]


def look(folder: Path, claimant: Owner) -> Sight | None:
    """Return the owner of a run, dead or alive; None if nobody ever owned it.

    Raises:
        OSError: The folder cannot be read or written.
    """
    file = owner_files.find(folder)
    if file.number == 0:
        return _before_owner_files(folder, claimant)
    owner = file.owner or Owner("", "process", host="unknown")
    process = _process(owner, claimant)
    over, job = False, dict[str, str]()
    asks = bool(owner.job_id) and not owner.is_same_job(claimant)
    if owner.kind != "nobody" and asks and process == "unknown":
        over, job = _ask(owner, claimant)
    seen = Seen(
        process=process,
        silent_s=file.silent_s,
        job="over" if over else "alive",
        copied=_is_copied(owner, folder),
    )
    return Sight(file.number, owner, seen, job)


def line(run: RunDir) -> str:
    """Return the line of `status` about the owner of a run."""
    reader = this_process("training")
    try:
        sight = look(run.path, reader)
    except OSError as error:
        return f"not known: {error.strerror}"
    if sight is None:
        return "nobody"
    if not sight.owner.token:
        return f"not known: owner.{sight.number} cannot be read"
    text = describe_owner(sight.owner, sight.job)
    gone = is_dead(sight.owner, reader, sight.seen) and sight.owner.kind != "nobody"
    return f"{text} (gone)" if gone else text


def _process(owner: Owner, claimant: Owner) -> Literal["alive", "gone", "unknown"]:
    if owner.kind != "process" or not is_visible(owner, claimant):
        return "unknown"
    start = process_start(owner.pid)
    if start == "":
        return "unknown"
    return "alive" if start == owner.start_time else "gone"


def _ask(owner: Owner, claimant: Owner) -> tuple[bool, dict[str, str]]:
    """Ask SLURM whether an owner's job is over; if SLURM does not answer, the job is not over."""
    is_of_another = bool(owner.user) and owner.user != claimant.user
    try:
        job = slurm.job_fields(owner.job_id, ASK_SLURM_S)
        # A SLURM of another cluster does not know the job either.
        if not job and owner.cluster and slurm.cluster_name(ASK_SLURM_S) != owner.cluster:
            return False, {}
        # SLURM gives the same answer for a job that it hides as for one that it does not know.
        if not job and is_of_another and slurm.hides_jobs(ASK_SLURM_S):
            return False, {}
    except LaunchError:
        return False, {}
    return job_is_over(job, -1 if owner.kind == "job" else owner.restarts), job


def _is_copied(owner: Owner, folder: Path) -> bool:
    """Return whether the run directory is a copy: both its path and its inode differ.

    One difference is not enough: hosts may mount it elsewhere, or number its folders differently.
    """
    if not owner.path or not owner.inode:
        return False
    return owner.path != str(folder) and owner.inode != folder.stat().st_ino


def _before_owner_files(folder: Path, claimant: Owner) -> Sight | None:
    """Treat the journal's last job as the owner of a run that an earlier version launched."""
    # Imported here because it reads configs, and a job has no time for that.
    from llada_sft.cluster.watch.status import last_job

    run = RunDir(folder)
    if not run.journal.exists() or shutil.which("scontrol") is None:
        return None
    job_id = last_job(run)
    if job_id is None:
        return None
    attempts = history.read(run.journal).of_job(job_id)
    restarts = attempts[-1].restarts if attempts else 0
    owner = Owner("earlier", "job", job_id=job_id, restarts=restarts)
    over, job = _ask(owner, claimant)
    return Sight(0, replace(owner, since="its launch"), Seen(job="over" if over else "alive"), job)
