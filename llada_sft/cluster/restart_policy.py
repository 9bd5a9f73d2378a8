"""Restart or not? A pure function of the journal and the config, asked when an attempt has ended.

    finished, cancelled, mistake, disk full, non-finite loss     over
    preempted, time limit, requeued, told to stop                again, as often as it happens with
                                       progress
    node failure, killed, lost         again, at most `slurm.node_failure_restarts` times
    exception, hang, out of memory     again, unless it is the same at the same step twice in a row
    preempted, time limit, any failure
                                       not after `slurm.attempts_without_progress` in a row without
                                       progress: a preemption or time limit came before
                                       `slurm.min_steps_per_attempt` new steps were saved, a failure
                                       before a new checkpoint

What counts are the attempts of one SLURM job: launching or resuming a run by hand makes a new job,
and with it a new budget.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llada_sft.cluster.causes import FIXED_BY_THE_USER, GIVEN_UP_EXIT_CODE, HANG_EXIT_CODE, Cause
from llada_sft.cluster.journal import Entry
from llada_sft.errors import EXIT_CODE

if TYPE_CHECKING:
    # The supervisor reads a config only after a failure.
    from llada_sft.config import Config

# Told by somebody, and saved or not: nobody's fault.
STOPS = frozenset({Cause.PREEMPTED, Cause.TIME_LIMIT, Cause.REQUEUED, Cause.TOLD_TO_STOP})
# Caused by SLURM, not by a person: these repeat, however little was done in between.
_BY_SLURM = frozenset({Cause.PREEMPTED, Cause.TIME_LIMIT})
OVER = FIXED_BY_THE_USER | {Cause.FINISHED, Cause.CANCELLED}
OF_THE_MACHINE = frozenset({Cause.NODE_FAILURE, Cause.KILLED, Cause.LOST})
EXIT_CODES = {
    **dict.fromkeys([*STOPS, Cause.FINISHED, Cause.CANCELLED], 0),
    **dict.fromkeys(FIXED_BY_THE_USER, EXIT_CODE),
    Cause.HANG: HANG_EXIT_CODE,
}
_WORDS = frozenset(Cause)
# Addresses and numbers differ from process to process.
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Decision:
    """What follows from an attempt's end.

    Attributes:
        restart: The job runs again.
        exit_code: Of the batch script, where it does not.
        given_up: Why the restart budget is used up; empty where it is not.
    """

    restart: bool
    exit_code: int
    given_up: str = ""


@dataclass(frozen=True)
class Attempt:
    """What counts of an attempt.

    Attributes:
        new_steps: By how many steps its newest checkpoint is ahead of all earlier ones; 0 if none.
        saved_steps: The steps that it made up to that checkpoint. More than `new_steps` if it
            started at an older checkpoint because a newer one was damaged.
    """

    number: int
    cause: Cause | None
    error: str
    step: int | None
    new_steps: int
    saved_steps: int

    def without_progress(self, least_steps: int) -> bool:
        """Return whether it counts as an attempt without progress."""
        if self.cause in _BY_SLURM:
            return self.saved_steps < least_steps
        return self.cause is not None and self.cause not in STOPS and self.new_steps == 0


def exit_code_of(cause: Cause) -> int:
    """Return the exit code of a job that ends for this."""
    return EXIT_CODES.get(cause, 1)


def decide(entries: Sequence[Entry], config: "Config") -> Decision:
    """Return what follows from the end of the last attempt.

    Args:
        entries: The run's journal.
        config: Its config.
    """
    attempts = attempts_of_last_job(entries)
    cause = attempts[-1].cause if attempts else None
    # Without its `ended` line the journal cannot be written: no budget could ever be used up.
    if cause is None:
        return Decision(restart=False, exit_code=1)
    code = exit_code_of(cause)
    if cause in OVER or cause in STOPS - _BY_SLURM:
        return Decision(cause in STOPS, code)
    if cause in _BY_SLURM:
        why = _standstill(attempts, config)
        return Decision(not why, GIVEN_UP_EXIT_CODE if why else code, why)
    failed = [one for one in attempts if one.cause is not None and one.cause not in STOPS]
    if why := _twice(failed) or _machine(failed, config) or _standstill(attempts, config):
        return Decision(restart=False, exit_code=GIVEN_UP_EXIT_CODE, given_up=why)
    return Decision(restart=True, exit_code=code)


def attempts_of_last_job(entries: Sequence[Entry]) -> list[Attempt]:
    """List the attempts of the job that started last."""
    started = [entry for entry in entries if entry.get("event") == "started"]
    if not started:
        return []
    job_id = started[-1].get("job_id")
    found, newest = [], 0
    for one in started:
        number = one.get("attempt", 0)
        own = [entry for entry in entries if entry.get("attempt") == number]
        saved = max((e.get("step", 0) for e in own if e.get("event") == "checkpoint"), default=0)
        if one.get("job_id") == job_id:
            found.append(_attempt(number, own, saved, newest))
        newest = max(newest, saved)
    return found


def given_up(entries: Sequence[Entry], job_id: str) -> str:
    """Return why a job was given up; empty if it was not."""
    last = [e for e in entries if e.get("event") == "given_up" and e.get("job_id") == job_id]
    return last[-1].get("detail", "") if last else ""


def _attempt(number: int, own: Sequence[Entry], saved: int, newest: int) -> Attempt:
    first = next((e.get("step", newest) for e in own if e.get("event") == "resumed"), newest)
    failed = next((entry for entry in own if entry.get("event") == "failed"), Entry())
    ended = [entry for entry in own if entry.get("event") == "ended"]
    word = ended[-1].get("cause") if ended else None
    step = failed.get("step", ended[-1].get("step") if ended else None)
    cause = Cause(word) if word in _WORDS else None
    return Attempt(
        number, cause, failed.get("error", ""), step, max(0, saved - newest), max(0, saved - first)
    )


def _twice(failed: Sequence[Attempt]) -> str:
    """Is it the fault of the attempt before, at the same step?"""
    if len(failed) < 2 or failed[-1].cause in OF_THE_MACHINE:
        return ""
    before, last = failed[-2:]
    if (before.cause, before.step) != (last.cause, last.step):
        return ""
    if last.cause == Cause.EXCEPTION and not _same_error(before.error, last.error):
        return ""
    where = "before the first step" if last.step is None else f"at step {last.step}"
    return f"the same {last.cause} {where} in two attempts: {last.error}"


def _same_error(one: str, other: str) -> bool:
    return _NUMBER.sub("#", one) == _NUMBER.sub("#", other)


def _machine(failed: Sequence[Attempt], config: "Config") -> str:
    allowed = config.slurm.node_failure_restarts
    count = sum(one.cause in OF_THE_MACHINE for one in failed)
    if failed[-1].cause not in OF_THE_MACHINE or count <= allowed:
        return ""
    return (
        f"{count} attempts ended with a lost node or a killed rank, and"
        f" slurm.node_failure_restarts is {allowed}; the last: {failed[-1].error}"
    )


def _standstill(attempts: Sequence[Attempt], config: "Config") -> str:
    allowed, least_steps = (
        config.slurm.attempts_without_progress,
        config.slurm.min_steps_per_attempt,
    )
    stood: list[Attempt] = []
    for one in reversed(attempts):
        if one.without_progress(least_steps):
            stood.append(one)
        elif one.new_steps:
            break
    if len(stood) < allowed:
        return ""
    by_slurm = sum(one.cause in _BY_SLURM for one in stood)
    if not by_slurm:
        return (
            f"{len(stood)} failed attempts in a row without a new checkpoint"
            f" (slurm.attempts_without_progress); the last: {attempts[-1].error}"
        )
    last = f"{attempts[-1].cause}: {attempts[-1].error}".removesuffix(": ")
    return (
        f"{len(stood)} attempts in a row without progress (slurm.attempts_without_progress):"
        f" {by_slurm} ended by a time limit or a preemption before {least_steps} new steps were"
        " saved (slurm.min_steps_per_attempt): raise slurm.time_min, or lower"
        f" slurm.signal_lead_s; the last: {last}"
    )
