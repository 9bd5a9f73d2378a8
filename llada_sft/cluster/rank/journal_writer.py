"""Rank 0's side of the journal: what the training records, and what an attempt's end needs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llada_sft.cluster import journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.rank.stopping import RankJob, before_save

if TYPE_CHECKING:
    # A rank imports the training later, all of it at once.
    from llada_sft.training.host import SavedCheckpoint

# A file system is sometimes slower than it was.
MARGIN = 1.25
ROUND_TO_S = 30


class RankJournal:
    """Adds entries of one attempt, and remembers its last step and its signals.

    Args:
        path: The journal.
        attempt: What all entries carry: the attempt's number, and its job.

    Attributes:
        job: The SLURM job; None for a local run.
        stop_signals: The names of the signals that any rank got, once all have agreed to stop.
        signalled_ranks: The ranks that got them, in words.
        cause: Why, if SLURM said so at once.
        early_end: Why the training ends before its last step, if it does.
    """

    def __init__(self, path: Path, attempt: Entry) -> None:
        self._path, self._attempt = path, attempt
        self.job: RankJob | None = None
        self.stop_signals: Sequence[str] = ()
        self.signalled_ranks = ""
        self.cause: Cause | None = None
        self.early_end = ""
        self._warned = False
        # Optimizer steps that were made, as far as the training has recorded them.
        self._step: int | None = None

    @property
    def attempt(self) -> int:
        """The attempt's number."""
        return self._attempt.get("attempt", 0)

    def note(self, entry: Entry) -> None:
        """Add an entry."""
        self._step = entry.get("step", self._step)
        journal.append(self._path, {**self._attempt, **entry})

    def stop_agreed(self, step: int, signals: Sequence[str], ranks: str) -> None:
        """Record that all ranks agreed to stop, and why, if SLURM says so at once.

        Args:
            step: Optimizer steps that were made.
            signals: The names of the signals.
            ranks: The ranks that got them, in words.
        """
        self.stop_signals, self.signalled_ranks = signals, ranks
        self.cause = before_save(signals, self.job)
        signal: Entry = {"event": "signal", "step": step, "signals": [*signals], "detail": ranks}
        self.note({**signal, "cause": self.cause} if self.cause else signal)

    def checkpoint_saved(self, checkpoint: "SavedCheckpoint") -> None:
        """Record a checkpoint; warn, once, if a signal would come too late for such a one."""
        entry: Entry = {
            "event": "checkpoint",
            "step": checkpoint.step,
            "seconds": checkpoint.seconds,
            "step_seconds": checkpoint.step_seconds,
            "num_bytes": checkpoint.num_bytes,
        }
        if checkpoint.total_steps is not None:
            entry["total_steps"] = checkpoint.total_steps
        self.note(entry)
        problem = lead_problem(checkpoint, self.job.signal_lead_s) if self.job else None
        if problem and not self._warned:
            self._warned = True
            print(f"warning: {problem}", flush=True)
            self.note({"event": "warning", "detail": problem})

    def ended_early(self, reason: str) -> None:
        """Keep the reason for the entry of the attempt's end."""
        self.early_end = reason

    def ended(self, cause: Cause, exit_code: int = 0, detail: str = "", error: str = "") -> None:
        """Record that the attempt is over, with the last step that is known."""
        entry: Entry = {"event": "ended", "cause": cause, "exit_code": exit_code}
        if detail:
            entry["detail"] = detail
        if error:
            entry["error"] = error
        if self._step is not None:
            entry["step"] = self._step
        self.note(entry)

    def given_up(self, why: str, exit_code: int) -> None:
        """Record that the restart budget is used up."""
        self.note({"event": "given_up", "detail": why, "exit_code": exit_code})


def lead_problem(checkpoint: "SavedCheckpoint", lead_s: int) -> str | None:
    """Return a warning if a checkpoint takes longer than a signal leaves time for, else None.

    Args:
        checkpoint: The checkpoint.
        lead_s: Seconds from the signal to the time limit.
    """
    save_s, step_s = checkpoint.seconds, checkpoint.step_seconds
    # Ranks agree one step ahead: a signal may have to wait for two steps.
    needed_s = MARGIN * (save_s + 2 * step_s)
    if needed_s <= lead_s:
        return None
    enough_s = math.ceil(needed_s / ROUND_TO_S) * ROUND_TO_S
    return (
        f"slurm.signal_lead_s: {lead_s} s, but a checkpoint took {save_s:.0f} s"
        f" and a step {step_s:.0f} s: set it to at least {enough_s}"
    )
