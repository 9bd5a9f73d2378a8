"""What the job around the training gives it: requests to stop, a journal, a watchdog.

`cluster/` builds it and the training calls it: imports go down only. Each part does nothing by
default, which is how tests and notebooks train.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

# What a rank is doing, for the watchdog: which rank waits for which follows from it.
Phase = Literal["start", "data", "agreement", "step", "checkpoint", "validation", "end"]

# What a rank does until its first step, for `status`; in their order.
StartPhase = Literal[
    "ranks", "checkpoint", "conversion", "data", "network", "first step", "training"
]


class SavedCheckpoint(NamedTuple):
    """A checkpoint that was written.

    Attributes:
        step: Its step.
        seconds: From the end of the step until it was complete.
        step_seconds: The longest way from one step to the next since the checkpoint before.
        num_bytes: Of all its shards.
        total_steps: Of the whole training, as far as it is known.
    """

    step: int
    seconds: float
    step_seconds: float
    num_bytes: int
    total_steps: int | None = None


@dataclass(frozen=True)
class Host:
    """The callables of one rank's job.

    Attributes:
        stop_requested: Asked once per step; when any rank says yes, all save and stop.
        require_owner: Ends the process if the run has another owner now; called before checkpoints
            change.
        phase: Called with what this rank does before its first step, and with the steps of the
            whole training once they are known.
        signals: Names the signals that this rank got; asked once, when all have agreed to stop.
        claim_signals: Installs the job's signal handlers again, over Lightning's, and says in one
            line which module handles what; raises a LladaSftError if another module does.
        note: Adds an entry to the run's journal. This and the next two are for rank 0 alone.
        stop_agreed: Records that all ranks agreed to stop: after which step, the names of the
            signals, and in words the ranks that got them. Called before the save.
        checkpoint_saved: Records a checkpoint.
        ended_early: Records why the training ends before its last step; for rank 0 alone.
        failed: Called with an exception and the step, before any clean-up; may end the process.
        pulse: Called with what this rank starts to do, and how many optimizer steps are made.
    """

    stop_requested: Callable[[], bool] = lambda: False
    claim_signals: Callable[[], str] = lambda: ""
    note: Callable[[Mapping[str, object]], None] = lambda entry: None
    stop_agreed: Callable[[int, Sequence[str], str], None] = lambda step, signals, ranks: None
    checkpoint_saved: Callable[[SavedCheckpoint], None] = lambda checkpoint: None
    ended_early: Callable[[str], None] = lambda reason: None
    failed: Callable[[Exception, int], None] = lambda error, step: None
    pulse: Callable[[Phase, int], None] = lambda phase, step: None
    phase: Callable[[StartPhase, int | None], None] = lambda phase, total_steps: None
    signals: Callable[[], Sequence[str]] = lambda: ()
    require_owner: Callable[[], None] = lambda: None
