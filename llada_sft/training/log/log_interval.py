"""The logged numbers that cover the steps since the previous line: rows, tokens, speed, waiting."""

import time
from collections import Counter
from collections.abc import Sequence

from llada_sft.training.consensus import Report
from llada_sft.training.log.efficiency import Efficiency


def share_of(source: str) -> str:
    """Return the name of the column with a source's share of what was trained."""
    return f"share_{source}"


class Interval:
    """What happened since the last logged step.

    The columns that count rows therefore sum to the rows of an attempt, except those after its last
    logged step. Time spent in validation does not count.

    Args:
        sources: Names of the mixed sources.
        efficiency: What MFU is worked out from; None leaves it out.
    """

    def __init__(self, sources: Sequence[str] = (), efficiency: Efficiency | None = None) -> None:
        self._sources, self._efficiency = sources, efficiency
        self._by_source = [0] * len(sources)
        self._start = time.monotonic()
        self._paused_at = self._start
        self._tokens = self._all_tokens = self._work = self._most_work = 0
        self._operations = 0.0
        # The own time of the median and of the slowest rank, and how often each was the slowest.
        self._own_us = self._most_own_us = 0
        self._slowest: Counter[int] = Counter()
        # The counts of rows and of waiting grow from step to step.
        self._before = self._last = Report()

    def add(self, counts: Report) -> None:
        """Add the counts of the global batch of one step."""
        self._tokens += counts.tokens
        self._all_tokens += counts.all_tokens
        self._work += counts.work
        self._most_work += counts.most_work
        if counts.own_us:
            self._own_us += counts.own_us
            self._most_own_us += counts.most_own_us
            self._slowest[counts.slowest_rank] += 1
        if self._efficiency is not None:
            self._operations += self._efficiency.needed(counts)
        self._by_source = [
            sum(pair) for pair in zip(self._by_source, counts.by_source, strict=True)
        ]
        self._last = counts

    def pause(self) -> None:
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        self._start += time.monotonic() - self._paused_at

    def close(self, world_size: int) -> dict[str, float]:
        """Return the numbers since the last call."""
        now, before, last = time.monotonic(), self._before, self._last
        seconds = max(now - self._start, 1e-9)
        waited_s = (last.wait_us - before.wait_us) / 1e6 / world_size
        metrics = {
            "tokens_per_s": self._tokens / seconds,
            "all_tokens_per_s": self._all_tokens / seconds,
            "tokens": self._tokens,
            "all_tokens": self._all_tokens,
            # Real tokens among all that the network ran on.
            "fill": self._tokens / max(self._all_tokens, 1),
            "rows": last.rows - before.rows,
            "bad_rows": last.bad - before.bad,
            "left_out_rows": last.left_out - before.left_out,
            "too_long": last.too_long - before.too_long,
            # Data is fetched one step ahead: a part may belong to the previous interval.
            "data_wait": min(waited_s / seconds, 1.0),
            "epoch_progress": last.rows_done / max(last.epoch_rows, 1),
            # The mean work of the ranks, over that of the one that has the most in each step.
            "balance": self._work / world_size / self._most_work if self._most_work else 1.0,
            "resident_gb": last.resident_bytes / 1e9,
        }
        # What is not known has no number.
        if last.gpu_bytes:
            metrics["gpu_gb"] = last.gpu_bytes / 1e9
        if self._efficiency is not None and self._efficiency.peak is not None:
            metrics["mfu"] = self._operations / seconds / world_size / self._efficiency.peak
        if self._own_us and world_size > 1:
            metrics["slowest_rank"] = self._slowest.most_common(1)[0][0]
            metrics["slowest_ratio"] = self._most_own_us / self._own_us
        of_all = max(sum(self._by_source), 1)
        for name, given in zip(self._sources, self._by_source, strict=True):
            metrics[share_of(name)] = given / of_all
        self._by_source = [0] * len(self._sources)
        self._start, self._before = now, last
        self._tokens = self._all_tokens = self._work = self._most_work = 0
        self._operations = 0.0
        self._own_us = self._most_own_us = 0
        self._slowest.clear()
        return metrics
