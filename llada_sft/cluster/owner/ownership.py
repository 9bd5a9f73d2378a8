"""Keeps a run directory, hands it over and releases it; `claim.py` claims it.

    launcher        claims as a process before it writes; submits; hands the run over to the job
    --local         claims as a process; its ranks belong to it, and end with it
    begin           claims for this start of its job
    rank 0, end     find the claim of their job; they write only while it is the highest

An owner that sees a higher number than its own has lost the run and exits (fencing): it was taken
for dead because it was stopped, or because its host could not be reached. If a claimant is killed,
at whatever moment, it remains as a dead owner, and the next claimant takes over.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from llada_sft.cluster import slurm
from llada_sft.cluster.owner import fence, owner_files
from llada_sft.cluster.owner.identity import (
    Owner,
    describe_owner,
    launched_job,
    nobody,
    process_start,
    refusal,
    this_job,
    this_process,
)
from llada_sft.cluster.owner.liveness import is_dead
from llada_sft.cluster.owner.owner_sight import ASK_SLURM_S, look
from llada_sft.errors import EXIT_CODE, LaunchError, SupersededError
from llada_sft.run_dir import RunDir

# The claim that the ranks of a launcher (--local, --here) belong to: "NUMBER:TOKEN".
VARIABLE = "LLADA_SFT_OWNER"
# What srun and torchrun set in the ranks that they start, and that they end themselves.
_STARTERS = frozenset({"SLURM_PROCID", "TORCHELASTIC_RUN_ID"})
# How many signs of life an owner gives within `run.owner_timeout_s`.
SIGNS = 10
WATCH_S = 5.0
_PR_SET_PDEATHSIG = 1


class Ownership:
    """A run directory that this process, or its job, owns while its number is the highest.

    Attributes:
        on_lost: Called by the thread of `keep` when another owner has taken the run over.
    """

    def __init__(self, run: Path, number: int, owner: Owner) -> None:
        self.run, self.number, self.owner = run, number, owner
        self.on_lost: Callable[[], None] = lambda: None
        self._over = threading.Event()

    @property
    def word(self) -> str:
        """The value of the environment variable `VARIABLE` of the ranks of a local run."""
        return f"{self.number}:{self.owner.token}"

    def is_held(self) -> bool:
        """Return whether this owner still has the run; true also if its folder cannot be read."""
        try:
            owner_files.refresh(self.run)
            highest = owner_files.highest(self.run)
            if highest == 0:
                # Somebody has removed the files: a new one shows other claimants this owner.
                return owner_files.create(self.run, self.number, self.owner)
        except OSError:
            return True
        return highest == self.number and self._is_own_file()

    def require(self) -> None:
        """Check that this owner still has the run.

        Raises:
            SupersededError: Another owner has taken the run over.
        """
        if not self.is_held():
            raise SupersededError(self._lost())

    def keep(self, every_s: float | None = None) -> None:
        """Write heartbeats from a thread, and call `on_lost` when the run is lost."""
        every_s = every_s or self.owner.timeout_s / SIGNS
        threading.Thread(target=self._keep, args=(every_s,), name="owner", daemon=True).start()

    def let_go(self) -> None:
        """Stop the heartbeats."""
        self._over.set()

    def hand_over(self, job_id: str) -> None:
        """Hand the run over to the job that was submitted for it.

        Raises:
            SupersededError: Another owner has meanwhile taken the run over; the job will end by
                itself.
        """
        self.let_go()
        cluster = ""
        with suppress(LaunchError):
            cluster = slurm.cluster_name(ASK_SLURM_S)
        job = launched_job(job_id, cluster, self.owner)
        if not owner_files.create(self.run, self.number + 1, job):
            owner = owner_files.find(self.run).owner
            if owner is None or not owner.is_same_job(job):
                raise SupersededError(self._lost())

    def release(self) -> None:
        """Release the run, unless another owner has taken it over."""
        self.let_go()
        with suppress(OSError):
            if owner_files.highest(self.run) == self.number:
                owner_files.create(self.run, self.number + 1, nobody(self.owner))
                owner_files.tidy(self.run)

    def leave_if_lost(self) -> None:
        """End this process at once, with one line, if the run is lost.

        There is no clean-up: it would write into the run directory, or wait for other ranks.
        """
        if not self.is_held():
            print(self._lost(), file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(EXIT_CODE)

    def _is_own_file(self) -> bool:
        # If somebody has removed the files, the numbers start again at 1.
        owner = owner_files.read(self.run, self.number)
        return owner is None or owner.token == self.owner.token

    def _keep(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            if not self.is_held():
                if not self._over.is_set():
                    self.on_lost()
                return
            owner_files.touch(self.run, self.number)

    def _lost(self) -> str:
        with suppress(OSError):
            if owner := owner_files.read(self.run, owner_files.highest(self.run)):
                return (
                    f"run {self.run} was taken over by {describe_owner(owner, {})}:"
                    " leaving, nothing more is written"
                )
        return f"run {self.run} has another owner now: leaving, nothing more is written"


_held: dict[Path, Ownership] = {}


def held(run: Path) -> Ownership | None:
    """Return this process's claim of a run, if it has one."""
    return _held.get(run.absolute())


def install(run: Path, ownership: Ownership) -> None:
    """Register the claim: it is checked before each write into the run."""
    _held[run.absolute()] = ownership
    fence.put_up(run, ownership.require)


def forget(ownership: Ownership) -> None:
    """Forget this process's claim of a run; the owner file stays."""
    ownership.let_go()
    _held.pop(ownership.run.absolute(), None)
    fence.take_down(ownership.run)


def give_up(ownership: Ownership) -> None:
    """Release a run, and forget the claim."""
    ownership.release()
    forget(ownership)


def of_job(run: RunDir, job_id: str, restarts: int) -> Ownership | None:
    """Return the claim of one start of a job; None if nobody ever claimed the run.

    Raises:
        SupersededError: Somebody else owns the run.
    """
    claimant = job_owner(job_id, restarts)
    # This node may not be the one of `begin`, and may have listed the folder before `begin` did.
    owner_files.refresh(run.path)
    try:
        number = owner_files.highest(run.path)
    except OSError:
        return None
    if number == 0:
        return None
    owner = owner_files.read(run.path, number)
    if owner is None or not owner.is_same_attempt(claimant):
        whose = describe_owner(owner, {}) if owner else f"the owner of owner.{number}"
        raise SupersededError(
            f"run {run.path} is not job {job_id}'s: it belongs to {whose}:"
            " leaving, nothing is written"
        )
    ownership = Ownership(run.path, number, owner)
    install(run.path, ownership)
    return ownership


def refuse_rank(run: RunDir, environment: Mapping[str, str]) -> None:
    """Check, before a rank writes anything, that the run has no other owner.

    A person may start a rank by hand, with the variables of another job, or without some or all of
    SLURM's variables.

    Raises:
        SupersededError: The run has another owner.
    """
    if environment.get(VARIABLE):
        # Only a launcher sets this variable, together with all others; see `of_rank`.
        return
    if job_id := environment.get("SLURM_JOB_ID"):
        of_job(run, job_id, _restarts(environment))
        return
    with suppress(OSError):
        me = this_process("training")
        sight = look(run.path, me) if owner_files.highest(run.path) else None
        if sight and not is_dead(sight.owner, me, sight.seen):
            raise SupersededError(refusal(run.path, sight.owner, sight.job, sight.seen.silent_s))


def of_rank(run: RunDir, rank: int, environment: Mapping[str, str]) -> Ownership | None:
    """Return the claim that a rank belongs to; None if it was started by hand, without a claim.

    A rank that has lost the run exits before its next write; rank 0 also checks every few seconds.
    A rank that its launcher has started itself ends with it: nobody else would end it.

    Raises:
        SupersededError: Somebody else owns the run.
    """
    ownership: Ownership | None = None
    if word := environment.get(VARIABLE):
        number, _, token = word.partition(":")
        ownership = _of_launcher(run, int(number), token)
        if not _STARTERS & environment.keys():
            _end_with(ownership.owner.pid)
    elif job_id := environment.get("SLURM_JOB_ID"):
        ownership = of_job(run, job_id, _restarts(environment))
    if ownership is None:
        return None
    fence.put_up(run.path, ownership.leave_if_lost)
    if rank == 0:
        ownership.on_lost = ownership.leave_if_lost
        ownership.keep(min(WATCH_S, ownership.owner.timeout_s / SIGNS))
    return ownership


def _restarts(environment: Mapping[str, str]) -> int:
    return int(environment.get("SLURM_RESTART_COUNT") or 0)


def job_owner(job_id: str, restarts: int) -> Owner:
    """Return one start of a job as an owner."""
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
    environment = {
        "SLURM_JOB_ID": job_id,
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_CLUSTER_NAME": cluster,
    }
    return this_job(environment)


def job_of(environment: Mapping[str, str]) -> str | None:
    """Return the SLURM job that a rank belongs to; None if it belongs to a launcher.

    A launcher may run in an allocation, which is then its user's and not the run's.
    """
    return None if environment.get(VARIABLE) else environment.get("SLURM_JOB_ID")


def _of_launcher(run: RunDir, number: int, token: str) -> Ownership:
    owner = owner_files.read(run.path, number)
    if owner is None or owner.token != token:
        raise SupersededError(f"run {run.path} is not this launcher's any more: leaving")
    ownership = Ownership(run.path, number, owner)
    ownership.require()
    return ownership


def _end_with(launcher: int) -> None:
    """Have the kernel kill this rank when its launcher is gone, however the launcher ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != launcher and process_start(launcher) is None:
        _gone(launcher)


def _gone(launcher: int) -> NoReturn:
    print(f"the launcher, process {launcher}, is gone: leaving", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
