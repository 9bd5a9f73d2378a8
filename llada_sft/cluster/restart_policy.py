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
from llada_sft.cluster.history import Attempt, History
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


def exit_code_of(cause: Cause) -> int:
    """Return the exit code of a job that ends for this."""
    return EXIT_CODES.get(cause, 1)


def decide(history: History, config: "Config") -> Decision:
    """Return what follows from the end of the run's last attempt."""
    last = history.last
    attempts = history.of_job(last.job_id) if last else []
    cause = last.cause if last else None
    # Without its `ended` line the journal cannot be written: no budget could ever be used up.
    if cause is None:
        return Decision(restart=False, exit_code=1)
    code = exit_code_of(cause)
    if cause in OVER or cause in STOPS - _BY_SLURM:
        return Decision(cause in STOPS, code)
    if cause in _BY_SLURM:
        why = _standstill(attempts, config)
        return Decision(not why, GIVEN_UP_EXIT_CODE if why else code, why)
    failed = [attempt for attempt in attempts if attempt.cause and attempt.cause not in STOPS]
    if why := _twice(failed) or _machine(failed, config) or _standstill(attempts, config):
        return Decision(restart=False, exit_code=GIVEN_UP_EXIT_CODE, given_up=why)
    return Decision(restart=True, exit_code=code)


def _without_progress(attempt: Attempt, least_steps: int) -> bool:
    """Return whether it counts as an attempt without progress."""
    if attempt.cause in _BY_SLURM:
        return attempt.saved_steps < least_steps
    return attempt.cause is not None and attempt.cause not in STOPS and attempt.new_steps == 0


def _twice(failed: Sequence[Attempt]) -> str:
    """Is it the fault of the attempt before, at the same step?"""
    if len(failed) < 2 or failed[-1].cause in OF_THE_MACHINE:
        return ""
    before, last = failed[-2:]
    if (before.cause, before.last_step) != (last.cause, last.last_step):
        return ""
    if last.cause == Cause.EXCEPTION and not _same_error(before.error, last.error):
        return ""
    where = "before the first step" if last.last_step is None else f"at step {last.last_step}"
    return f"the same {last.cause} {where} in two attempts: {last.error}"


def _same_error(error: str, other: str) -> bool:
    return _NUMBER.sub("#", error) == _NUMBER.sub("#", other)


def _machine(failed: Sequence[Attempt], config: "Config") -> str:
    allowed = config.slurm.node_failure_restarts
    count = sum(attempt.cause in OF_THE_MACHINE for attempt in failed)
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
    for attempt in reversed(attempts):
        if _without_progress(attempt, least_steps):
            stood.append(attempt)
        elif attempt.new_steps:
            break
    if len(stood) < allowed:
        return ""
    by_slurm = sum(attempt.cause in _BY_SLURM for attempt in stood)
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
