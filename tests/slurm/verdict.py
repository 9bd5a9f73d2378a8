"""What must hold of a run that faults befell: judged from what happened, with nothing running."""

from collections.abc import Sequence
from dataclasses import dataclass

from faults import CAUSES, CHECKPOINTS_BEFORE, GRACEFUL, Fault, Planned

from llada_sft.cluster.causes import Cause


@dataclass(frozen=True)
class Attempt:
    """One attempt of the run, as seen.

    Attributes:
        planned: The fault that befell it; None for the last, which ended by itself.
        first: The first optimizer step that it made, from 1.
        last: The last one that it made.
        loaded: The name of the checkpoint that its ranks loaded, empty where there was none: one.
        causes: The journal's causes of its end: one.
        damaged: Checkpoints that it passed over for damage, as the journal says.
        seconds: From its first step to the first one of the next attempt.
        saved: The step of the newest checkpoint that the journal calls complete at its end; None:
            that of the last step at which one was due. Checkpoints are written while the training
            continues: a kill may come before the newest one is complete.
    """

    planned: Planned | None
    first: int
    last: int
    loaded: Sequence[str]
    causes: Sequence[str]
    damaged: int = 0
    seconds: float = 0.0
    saved: int | None = None


def judge(
    attempts: Sequence[Attempt], restarts: int, max_steps: int, checkpoint_every: int
) -> list[str]:
    """List what does not hold.

    Args:
        attempts: All of the run, in their order.
        restarts: How often SLURM says that it restarted the job.
        max_steps: The steps of the run.
        checkpoint_every: Steps between two checkpoints: what a kill may cost.
    """
    problems = []
    if restarts != len(attempts) - 1:
        problems.append(f"{restarts} restarts of {len(attempts)} attempts")
    for number, attempt in enumerate(attempts, start=1):
        found = [_cause(attempt), _loaded(attempt)]
        if number < len(attempts):
            found += [
                _lost(attempt, attempts[number], checkpoint_every),
                _damage(attempt, attempts[number]),
            ]
        name = attempt.planned.fault if attempt.planned else "to the end"
        problems += [f"attempt {number} ({name}): {problem}" for problem in found if problem]
    if attempts[0].first != 1:
        problems.append(f"the first step was {attempts[0].first}")
    if attempts[-1].last != max_steps:
        problems.append(f"the last step was {attempts[-1].last} of {max_steps}")
    return problems


def lost_steps(attempt: Attempt, following: Attempt) -> int:
    """Count the steps that were made and had to be made again; negative if some were left out."""
    return attempt.last - (following.first - 1)


def _cause(attempt: Attempt) -> str | None:
    expected = CAUSES[attempt.planned.fault] if attempt.planned else Cause.FINISHED
    if list(attempt.causes) == [expected]:
        return None
    return f"the journal must say {expected.value!r} once, got {list(attempt.causes)}"


def _loaded(attempt: Attempt) -> str | None:
    expected = f"step_{attempt.first - 1}" if attempt.first > 1 else ""
    if list(attempt.loaded) == [expected]:
        return None
    return f"its first step was {attempt.first}, and its ranks loaded {list(attempt.loaded)}"


def _lost(attempt: Attempt, following: Attempt, checkpoint_every: int) -> str | None:
    assert attempt.planned
    lost = lost_steps(attempt, following)
    # More than one: the newest of so many checkpoints must not be used.
    spent = CHECKPOINTS_BEFORE.get(attempt.planned.fault, 1)
    least, most = (spent - 1) * checkpoint_every, spent * checkpoint_every
    newest = attempt.last // checkpoint_every * checkpoint_every
    if attempt.planned.fault in GRACEFUL:
        most = 0
    elif attempt.saved is not None and attempt.saved < newest:
        # The newest one was being written.
        most += checkpoint_every - 1
    if least <= lost <= most:
        return None
    return f"lost {lost} steps, {f'{least} to ' if least else ''}{most} are allowed"


def _damage(attempt: Attempt, following: Attempt) -> str | None:
    assert attempt.planned
    expected = int(attempt.planned.fault == Fault.DAMAGED)
    if following.damaged == expected:
        return None
    return f"the next attempt found {following.damaged} damaged checkpoints of {expected}"
