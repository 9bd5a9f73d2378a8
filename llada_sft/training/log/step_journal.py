"""What the training records in the journal: where it resumed, checkpoints, signals."""

import sys
import time
from typing import Any

from llada_sft.training.consensus import Consensus
from llada_sft.training.host import Host
from llada_sft.versions import package_versions

_PACKAGES = ("llada-sft", "torch", "lightning", "deepspeed", "transformers")
# More ranks than these are counted, not named.
_MOST_NAMED = 8


def versions() -> dict[str, str | None]:
    """Return the versions that a checkpoint depends on."""
    known = package_versions(_PACKAGES)
    return {name: known[name] for name in _PACKAGES}


class Notes:
    """Measures steps and saves, and lets rank 0 note them.

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

    def resumed(self, step: int) -> None:
        """Record the step that the attempt resumes from."""
        self._note({"event": "resumed", "step": step, "versions": versions()})

    def step_ended(self) -> None:
        """Measure a step; before what follows at its boundary."""
        now = time.monotonic()
        if self._last_end is not None:
            self._longest_s = max(self._longest_s, now - self._last_end)
        self._last_end = now

    def told_to_stop(self, step: int) -> None:
        """Record which ranks got which signals: before the save, for which there may be no time.

        Every rank takes part, once all have agreed to stop.
        """
        ranks: Any = self._consensus.gather(list(self._host.signals()))
        names = sorted({name for names in ranks for name in names})
        told = [rank for rank, names in enumerate(ranks) if names]
        who = _who(told, len(ranks))
        self._note({"event": "signal", "step": step, "signals": names, "detail": who})

    def saved(self, step: int, num_bytes: int, total_steps: int | None = None) -> None:
        """Note a checkpoint: all that happened since the step ended."""
        assert self._last_end is not None
        now = time.monotonic()
        self._note(
            {
                "event": "checkpoint",
                "step": step,
                "seconds": round(now - self._last_end, 3),
                "step_seconds": round(self._longest_s, 3),
                "num_bytes": num_bytes,
                **({} if total_steps is None else {"total_steps": total_steps}),
            }
        )
        self._last_end, self._longest_s = now, 0.0

    def not_saved(self, step: int, line: str) -> None:
        """Warn of a checkpoint that could not be written, and measure again from here."""
        if self._rank == 0:
            print(f"warning: {line}", file=sys.stderr, flush=True)
        self._note({"event": "warning", "step": step, "detail": line})
        self._last_end = time.monotonic()

    def _note(self, entry: dict[str, object]) -> None:
        if self._rank == 0:
            self._host.note(entry)


def _who(told: list[int], world_size: int) -> str:
    """Return, in words, the ranks that got a signal."""
    if len(told) == world_size:
        return "all ranks"
    if len(told) > _MOST_NAMED:
        return f"{len(told)} of {world_size} ranks"
    return f"rank{'s' if len(told) > 1 else ''} {', '.join(map(str, told))}"
