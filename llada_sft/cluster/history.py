"""What the journal says of a run: its attempts, and how each of them ended.

`journal.py` writes and parses entries. All questions on them are answered here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llada_sft.cluster import journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.journal import Entry, Event

_CAUSES = frozenset(Cause)


@dataclass(frozen=True)
class Attempt:
    """One start of a run's ranks.

    Attributes:
        number: Counts the starts of a run, over all its jobs; from 1.
        entries: Its entries, in the journal's order; the first is `started`.
        step_before: The step of the newest checkpoint of all attempts before; 0 if none.
    """

    number: int
    entries: Sequence[Entry]
    step_before: int

    @property
    def started(self) -> Entry:
        """The entry that it started with."""
        return self.entries[0]

    @property
    def job_id(self) -> str | None:
        """The SLURM job; None for a local run."""
        return self.started.get("job_id")

    @property
    def restarts(self) -> int:
        """SLURM's count of the job's restarts."""
        return self.started.get("restarts", 0)

    @property
    def nodes(self) -> str:
        """The nodes, as SLURM writes them; empty for a local run."""
        return self.started.get("nodes", "")

    @property
    def world_size(self) -> int:
        """How many ranks were started."""
        return self.started.get("world_size", 1)

    @property
    def key(self) -> Entry:
        """What its later entries carry: its number and its job."""
        key: Entry = {"attempt": self.number}
        if self.job_id is not None:
            key["job_id"] = self.job_id
        return key

    @property
    def ended(self) -> Entry | None:
        """The entry that it ended with; None while it runs, and where nobody saw it end."""
        return _last(self.entries, "ended")

    @property
    def given_up(self) -> Entry | None:
        """The entry that gave up its job; None if the job was not given up."""
        return _last(self.entries, "given_up")

    @property
    def cause(self) -> Cause | None:
        """Why it ended; None where the journal does not say, or says an unknown word."""
        return _cause(self.ended or Entry())

    @property
    def error(self) -> str:
        """The error of the first rank that failed; empty if none is recorded."""
        return self._failed.get("error", "")

    @property
    def last_step(self) -> int | None:
        """The step at which it failed or ended; None where that is not recorded."""
        return self._failed.get("step", (self.ended or Entry()).get("step"))

    @property
    def resumed_step(self) -> int | None:
        """The step that it resumed from; None if no rank came as far."""
        resumed = _of(self.entries, "resumed")
        return resumed[0].get("step") if resumed else None

    @property
    def known_step(self) -> int | None:
        """The highest step in any of its entries; None if no entry has one."""
        return max((entry["step"] for entry in self.entries if "step" in entry), default=None)

    @property
    def new_steps(self) -> int:
        """By how many steps its newest checkpoint is ahead of all earlier ones; 0 if none."""
        return max(0, self._checkpoint_step - self.step_before)

    @property
    def saved_steps(self) -> int:
        """The steps that it made up to its newest checkpoint.

        More than `new_steps` if it resumed from an older checkpoint, as a newer one was damaged.
        """
        first = self.step_before if self.resumed_step is None else self.resumed_step
        return max(0, self._checkpoint_step - first)

    @property
    def signal_causes(self) -> list[Cause]:
        """Why its ranks were signalled, where SLURM said so at once."""
        causes = map(_cause, _of(self.entries, "signal"))
        return [cause for cause in causes if cause is not None]

    @property
    def _failed(self) -> Entry:
        return next(iter(_of(self.entries, "failed")), Entry())

    @property
    def _checkpoint_step(self) -> int:
        return _newest_step(self.entries)


@dataclass(frozen=True)
class History:
    """A run's journal, read.

    Attributes:
        entries: All its entries, in their order.
    """

    entries: Sequence[Entry]

    @cached_property
    def attempts(self) -> list[Attempt]:
        """All attempts, in the order of their starts.

        An entry belongs to the attempt whose number it carries. One without a number, or with a
        number of which no start is recorded, belongs to the attempt that started last before it.
        """
        grouped: list[tuple[int, list[Entry]]] = []
        of_number: dict[int, list[Entry]] = {}
        for entry in self.entries:
            if entry.get("event") == "started":
                number = entry.get("attempt", len(grouped) + 1)
                of_number[number] = [entry]
                grouped.append((number, of_number[number]))
            elif entry.get("attempt") in of_number:
                of_number[entry["attempt"]].append(entry)
            elif grouped:
                grouped[-1][1].append(entry)
        attempts, step = [], 0
        for number, entries in grouped:
            attempts.append(Attempt(number, entries, step))
            step = max(step, _newest_step(entries))
        return attempts

    @property
    def last(self) -> Attempt | None:
        """The attempt that started last; None before the first."""
        return self.attempts[-1] if self.attempts else None

    @property
    def open(self) -> Attempt | None:
        """The last attempt, if no entry says that it has ended."""
        return self.last if self.last is not None and self.last.ended is None else None

    @property
    def next_number(self) -> int:
        """The number of the attempt that is about to start."""
        return len(self.attempts) + 1

    @property
    def current_number(self) -> int:
        """The number of the attempt that runs: the one that started last."""
        return max(1, len(self.attempts))

    @property
    def last_cause(self) -> str:
        """The word with which the last ended attempt ended; empty if none has ended."""
        ended = _last(self.entries, "ended")
        return "" if ended is None else ended.get("cause", "")

    @property
    def given_up(self) -> Entry | None:
        """The entry that gave up the last job; None if none did, or it was started again since."""
        last = _last(self.entries, "launched", "started", "given_up")
        return last if last is not None and last.get("event") == "given_up" else None

    @property
    def is_at_rest(self) -> bool:
        """Whether the last attempt has ended, and nobody has prepared another one since."""
        last = _last(self.entries, "launched", "changed", "started", "ended", "given_up")
        return last is not None and last.get("event") in ("ended", "given_up")

    @property
    def job_id(self) -> str | None:
        """The SLURM job that was launched or started last; None if that was a local run.

        A job from before the run was moved or copied is not its own.
        """
        for entry in reversed(self.entries):
            if entry.get("event") in ("launched", "started"):
                return entry.get("job_id")
            if "moved_from" in entry:
                return None
        return None

    @property
    def total_steps(self) -> int | None:
        """The steps of the whole training, as the last entry that has them says."""
        known = [entry["total_steps"] for entry in self.entries if "total_steps" in entry]
        return known[-1] if known else None

    def why_given_up(self, job_id: str) -> str:
        """Return why a job was given up; empty if it was not."""
        entries = [e for e in _of(self.entries, "given_up") if e.get("job_id") == job_id]
        return entries[-1].get("detail", "") if entries else ""

    def excluded(self) -> list[Entry]:
        """Return the entries of the nodes that are excluded from the last job."""
        job_id = self.job_id
        return [e for e in _of(self.entries, "excluded") if e.get("job_id") == job_id]

    def of_job(self, job_id: str | None) -> list[Attempt]:
        """Return the attempts of a job; of None, the local ones."""
        return [attempt for attempt in self.attempts if attempt.job_id == job_id]


def read(path: Path) -> History:
    """Read a journal; one that does not exist has no entries."""
    return History(journal.read(path))


def _newest_step(entries: Sequence[Entry]) -> int:
    """Return the step of the newest checkpoint among entries; 0 if none."""
    return max((entry.get("step", 0) for entry in _of(entries, "checkpoint")), default=0)


def _of(entries: Sequence[Entry], *events: Event) -> list[Entry]:
    return [entry for entry in entries if entry.get("event") in events]


def _last(entries: Sequence[Entry], *events: Event) -> Entry | None:
    matching = _of(entries, *events)
    return matching[-1] if matching else None


def _cause(entry: Entry) -> Cause | None:
    word = entry.get("cause")
    return Cause(word) if word in _CAUSES else None
