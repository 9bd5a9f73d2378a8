"""Claims a run directory: all claimants but one are refused, with a line that names the owner."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from llada_sft.cluster.owner import owner_files
from llada_sft.cluster.owner.identity import (
    DEFAULT_TIMEOUT_S,
    Doing,
    Owner,
    describe_owner,
    refusal,
    this_job,
    this_process,
)
from llada_sft.cluster.owner.liveness import is_dead
from llada_sft.cluster.owner.owner_sight import Sight, look
from llada_sft.cluster.owner.ownership import SIGNS, Ownership, forget, give_up, held, install
from llada_sft.entry import print_or_drop
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

POLL_S = 0.5
# How much longer than the owner's timeout a job waits for the launcher that may have submitted it.
PATIENCE_S = 30.0


def claim(run: RunDir, claimant: Owner, building: Path | None = None) -> Ownership:
    """Become the owner of a run; a process or job that owns it already keeps its claim.

    Args:
        run: The run directory.
        claimant: The process or job that claims the run. A job waits for a launcher that may be
            about to hand the run over.
        building: The path of the run directory until it is renamed.

    Raises:
        LaunchError: Somebody else owns the run; one line names the owner.
    """
    folder = building or run.path
    try:
        claimant = replace(claimant, path=str(run.path), inode=folder.stat().st_ino)
        number, owner = _claim(folder, claimant)
        owner_files.tidy(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        first = "make room on the disk" if full else "make it writable for you"
        raise LaunchError(
            f"{run.path}: its owner cannot be recorded: {error.strerror}; {first},"
            " or choose another run.root"
        ) from None
    ownership = Ownership(folder, number, owner)
    if owner.kind == "process":
        ownership.keep()
    install(folder, ownership)
    return ownership


class Holder:
    """Owns the run that a launcher writes into, until the run is handed over or the context ends.

    Args:
        claimant: The launcher's process; or its job, which keeps the run after the context.
    """

    def __init__(self, claimant: Owner) -> None:
        self._claimant = claimant
        self._ownership: Ownership | None = None

    def refuse(self, run: RunDir) -> None:
        """Check whether a run could be claimed now, without claiming it.

        Raises:
            LaunchError: Somebody else owns the run; one line names the owner.
        """
        claimant = replace(self._claimant, path=str(run.path))
        with suppress(OSError):
            sight = look(run.path, claimant)
            if sight and not _may_take(sight, claimant):
                raise LaunchError(_refusal(run.path, claimant, sight))

    def claim(self, run: RunDir, building: Path | None = None) -> None:
        """Claim a run; called again with its final path after the built directory was renamed.

        Raises:
            LaunchError: Somebody else owns the run; one line names the owner.
        """
        if self._ownership:
            forget(self._ownership)
        self._ownership = claim(run, self._claimant, building)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ownership and (error or self._claimant.kind == "process"):
            give_up(self._ownership)


@contextmanager
def hold(run: RunDir, doing: Doing, timeout_s: int = DEFAULT_TIMEOUT_S) -> Iterator[Ownership]:
    """Own a run as a process during the context; a process that owns it already keeps its claim.

    Raises:
        LaunchError: Somebody else owns the run.
    """
    if ownership := held(run.path):
        yield ownership
        return
    ownership = claim(run, this_process(doing, timeout_s))
    try:
        yield ownership
    finally:
        give_up(ownership)


def of_batch_script() -> Owner | None:
    """Return the job of this process as an owner if a batch script runs it; otherwise None.

    An interactive allocation does not count: a person may start several processes in it.
    """
    if "SLURM_JOB_ID" in os.environ and os.environ.get("ENVIRONMENT") == "BATCH":
        return this_job(os.environ)
    return None


def _claim(folder: Path, claimant: Owner) -> tuple[int, Owner]:
    give_up_at = float("inf")
    while True:
        sight = look(folder, claimant)
        number = sight.number if sight else 0
        if sight and _is_own(sight.owner, claimant):
            if number:
                return number, sight.owner
        elif sight and not is_dead(sight.owner, claimant, sight.seen):
            give_up_at = min(give_up_at, _deadline(sight.owner, claimant))
            if time.monotonic() >= give_up_at:
                raise LaunchError(_refusal(folder, claimant, sight))
            time.sleep(POLL_S)
            continue
        elif sight and _by_silence_alone(sight, claimant) and _gives_a_sign(folder, sight):
            continue
        if owner_files.create(folder, number + 1, claimant):
            return number + 1, claimant


def _may_take(sight: Sight, claimant: Owner) -> bool:
    return _is_own(sight.owner, claimant) or is_dead(sight.owner, claimant, sight.seen)


def _is_own(owner: Owner, claimant: Owner) -> bool:
    return owner.token == claimant.token or owner.is_same_attempt(claimant)


def _deadline(owner: Owner, claimant: Owner) -> float:
    """Return until when to wait for a living owner: only a job waits, and only for a launcher."""
    if claimant.kind != "job" or owner.kind != "process" or owner.doing == "training":
        return 0.0
    return time.monotonic() + owner.timeout_s + PATIENCE_S


def _by_silence_alone(sight: Sight, claimant: Owner) -> bool:
    return not is_dead(sight.owner, claimant, replace(sight.seen, silent_s=0.0))


def _gives_a_sign(folder: Path, sight: Sight) -> bool:
    """Wait for one more sign of life: the file server's clock may just have been set forward."""
    wait_s = sight.owner.timeout_s / SIGNS + 1
    print_or_drop(
        f"{describe_owner(sight.owner, {})} has given no sign for {sight.seen.silent_s:.0f} s:"
        f" taking over in {wait_s:.0f} s",
        sys.stderr,
    )
    time.sleep(wait_s)
    file = owner_files.find(folder)
    return file.number != sight.number or file.silent_s < wait_s


def _refusal(folder: Path, claimant: Owner, sight: Sight) -> str:
    if not sight.owner.token:
        remaining = max(1, round(sight.owner.timeout_s - sight.seen.silent_s))
        return (
            f"run {claimant.path}: owner.{sight.number} cannot be read, so its owner is not known:"
            f" try again in {remaining} s, when it counts as dead"
        )
    silent_s = sight.seen.silent_s if sight.seen.process == "unknown" else 0.0
    return refusal(Path(claimant.path), sight.owner, sight.job, silent_s)
