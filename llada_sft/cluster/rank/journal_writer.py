"""Rank 0's side of the journal: what the training notes, and what the attempt's end needs of it."""

import math
from pathlib import Path

from llada_sft.cluster import journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.rank.stopping import RankJob, before_save

# A file system is sometimes slower than it was.
MARGIN = 1.25
ROUND_TO_S = 30


class RankJournal:
    """Adds entries of one attempt, and remembers its last step and its signals.

    Args:
        path: The journal.
        attempt: What all entries carry: the attempt's number.
    """

    def __init__(self, path: Path, attempt: Entry) -> None:
        self._path, self._attempt = path, attempt
        # None for a local run.
        self.job: RankJob | None = None
        self._warned = False
        # Optimizer steps that were made, as far as the training has noted.
        self._step: int | None = None
        # The names of the signals that any rank got, once all have agreed to stop, and the ranks.
        self.told: list[str] = []
        self.told_whom = ""
        self.cause: Cause | None = None

    @property
    def attempt(self) -> int:
        """The attempt's number."""
        return self._attempt.get("attempt", 0)

    def note(self, entry: Entry) -> None:
        """Add one entry."""
        self._step = entry.get("step", self._step)
        if entry.get("event") == "signal":
            entry = self._with_cause(entry)
        if entry.get("event") == "ended" and self._step is not None:
            entry = {**entry, "step": self._step}
        journal.append(self._path, {**self._attempt, **entry})
        if entry.get("event") == "checkpoint" and self.job:
            self._check_lead(entry, self.job)

    def _with_cause(self, signal: Entry) -> Entry:
        """Remember which ranks got which signals, and add why, if SLURM says so at once."""
        self.told, self.told_whom = signal.get("signals", []), signal.get("detail", "")
        self.cause = before_save(self.told, self.job)
        return {**signal, "cause": self.cause} if self.cause else signal

    def _check_lead(self, checkpoint: Entry, job: RankJob) -> None:
        """Warn, once, where a signal would come too late for such a checkpoint."""
        problem = lead_problem(checkpoint, job.signal_lead_s)
        if problem and not self._warned:
            self._warned = True
            print(f"warning: {problem}", flush=True)
            self.note({"event": "warning", "detail": problem})


def lead_problem(checkpoint: Entry, lead_s: int) -> str | None:
    """Return a warning if a checkpoint takes longer than a signal leaves time for, else None.

    Args:
        checkpoint: A checkpoint's entry.
        lead_s: Seconds from the signal to the time limit.
    """
    save_s, step_s = checkpoint.get("seconds", 0.0), checkpoint.get("step_seconds", 0.0)
    # Ranks agree one step ahead: a signal may have to wait for two steps.
    needed_s = MARGIN * (save_s + 2 * step_s)
    if needed_s <= lead_s:
        return None
    enough_s = math.ceil(needed_s / ROUND_TO_S) * ROUND_TO_S
    return (
        f"slurm.signal_lead_s: {lead_s} s, but a checkpoint took {save_s:.0f} s"
        f" and a step {step_s:.0f} s: set it to at least {enough_s}"
    )
