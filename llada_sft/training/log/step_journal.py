"""What the training records in the journal: where it resumed, checkpoints, signals."""

import sys
import time
from typing import Any

from llada_sft.training.consensus import Consensus
from llada_sft.training.host import Host, SavedCheckpoint
from llada_sft.versions import package_versions

_PACKAGES = ("llada-sft", "torch", "lightning", "deepspeed", "transformers")
# More ranks than these are counted, not named.
_MOST_NAMED = 8


def versions() -> dict[str, str | None]:
    """Return the versions that a checkpoint depends on."""
    known = package_versions(_PACKAGES)
    return {name: known[name] for name in _PACKAGES}


class StepJournal:
    """Measures steps and saves, and lets rank 0 record them.

    Args:
        host: Keeps the journal, and knows this rank's signals.
        consensus: The agreement of the ranks.
        rank: Which one this is.
    """

    def __init__(self, host: Host, consensus: Consensus, rank: int) -> None:
        self._host, self._consensus, self._rank = host, consensus, rank
        # When the step before ended, or its checkpoint; an attempt's first step is not measured, it
        # warms up.
        self._last_end: float | None = None
        # The longest way from one step to the next since the last checkpoint; with a validation
        # in between, if there was one: a signal has to wait for that as well.
        self._longest_s = 0.0
        # How long the training waited where the checkpoint that is being written began.
        self._begin_s = 0.0

    def resumed(self, step: int) -> None:
        """Record the step that the attempt resumes from."""
        if self._rank == 0:
            self._host.note({"event": "resumed", "step": step, "versions": versions()})

    def step_ended(self) -> None:
        """Measure a step; before what follows at its boundary."""
        now = time.monotonic()
        if self._last_end is not None:
            self._longest_s = max(self._longest_s, now - self._last_end)
        self._last_end = now

    def stop_agreed(self, step: int) -> None:
        """Record which ranks got which signals: before the save, for which there may be no time.

        Every rank takes part, once all have agreed to stop.
        """
        of_ranks: Any = self._consensus.gather(list(self._host.signals()))
        signals = sorted({signal for signals in of_ranks for signal in signals})
        ranks = [rank for rank, signals in enumerate(of_ranks) if signals]
        if self._rank == 0:
            self._host.stop_agreed(step, signals, _in_words(ranks, len(of_ranks)))

    def checkpoint_begun(self) -> None:
        """Measure the wait at a step whose checkpoint is written in the background from here on."""
        assert self._last_end is not None
        now = time.monotonic()
        self._begin_s, self._last_end = now - self._last_end, now

    def checkpoint_saved(
        self, step: int, num_bytes: int, total_steps: int | None = None, write_s: float = 0.0
    ) -> None:
        """Record a complete checkpoint.

        Its seconds are all that happened since the step ended. Of one that was begun before, they
        are what it took by itself: without the steps in between.

        Args:
            step: Its step.
            num_bytes: Of all its shards.
            total_steps: Of the whole training, as far as it is known.
            write_s: Seconds that this rank's writing in the background took.
        """
        assert self._last_end is not None
        now = time.monotonic()
        whole = self._begin_s + write_s + now - self._last_end
        seconds, step_seconds = round(whole, 3), round(self._longest_s, 3)
        self._begin_s = 0.0
        if self._rank == 0:
            self._host.checkpoint_saved(
                SavedCheckpoint(step, seconds, step_seconds, num_bytes, total_steps)
            )
        self._last_end, self._longest_s = now, 0.0

    def checkpoint_failed(self, step: int, line: str) -> None:
        """Warn of a checkpoint that could not be written, and measure again from here."""
        if self._rank == 0:
            print(f"warning: {line}", file=sys.stderr, flush=True)
            self._host.note({"event": "warning", "step": step, "detail": line})
        self._last_end = time.monotonic()


def _in_words(ranks: list[int], world_size: int) -> str:
    """Name the ranks that got a signal."""
    if len(ranks) == world_size:
        return "all ranks"
    if len(ranks) > _MOST_NAMED:
        return f"{len(ranks)} of {world_size} ranks"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
