"""What the job around the training gives it: requests to stop, a journal, a watchdog.

`cluster/` builds it and the training calls it: imports go down only. Each part does nothing by
default, which is how tests and notebooks train.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# What a rank is doing, for the watchdog: which rank waits for which follows from it.
Phase = Literal["start", "data", "agreement", "step", "checkpoint", "validation", "end"]


@dataclass(frozen=True)
class Host:
    """The callables of one rank's job.

    Attributes:
        stop_requested: Asked once per step; when any rank says yes, all save and stop.
        require_owner: Ends the process if the run has another owner now; called before checkpoints
            change.
        signals: Names the signals that this rank got; asked once, when all have agreed to stop.
        claim_signals: Installs the job's signal handlers again, over Lightning's, and says in one
            line which module handles what; raises a LladaSftError if another module does.
        note: Adds an entry to the run's journal; to be called on rank 0 alone.
        failed: Called with an exception and the step, before any clean-up; may end the process.
        pulse: Called with what this rank starts to do, and how many optimizer steps are made.
    """

    stop_requested: Callable[[], bool] = lambda: False
    claim_signals: Callable[[], str] = lambda: ""
    note: Callable[[Mapping[str, object]], None] = lambda entry: None
    failed: Callable[[Exception, int], None] = lambda error, step: None
    pulse: Callable[[Phase, int], None] = lambda phase, step: None
    signals: Callable[[], Sequence[str]] = lambda: ()
    require_owner: Callable[[], None] = lambda: None
