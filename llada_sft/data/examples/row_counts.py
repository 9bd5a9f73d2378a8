"""What became of the rows that were read; the counts travel with the steps."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RowCounts:
    """Rows, and what became of them.

    Attributes:
        rows: Rows that were read, including bad ones and those the hook dropped.
        bad: Bad rows by reason (`quarantine.Reason`).
        clipped: Examples that were too long and were cut.
        skipped: Examples that were skipped because they were too long.
        dropped_by_hook: Rows of which the hook made no example.
    """

    rows: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)
    clipped: int = 0
    skipped: int = 0
    dropped_by_hook: int = 0

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())

    @property
    def too_long(self) -> int:
        return self.clipped + self.skipped

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(
            self.rows + other.rows,
            # Seldom any: this runs for every row of a run.
            dict(Counter(self.bad) + Counter(other.bad)) if other.bad else self.bad,
            self.clipped + other.clipped,
            self.skipped + other.skipped,
            self.dropped_by_hook + other.dropped_by_hook,
        )

    def __str__(self) -> str:
        """Write the counts as `12 rows, 3 bad (2 not_json, 1 bad_record), ...`, without zeros."""
        parts = [f"{self.rows:,} rows"]
        if self.bad:
            reasons = sorted(self.bad.items(), key=lambda item: (-item[1], item[0]))
            listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
            parts.append(f"{self.num_bad:,} bad ({listed}: quarantine/)")
        if self.too_long:
            done = {"clipped": self.clipped, "skipped": self.skipped}
            listed = ", ".join(f"{count:,} {what}" for what, count in done.items() if count)
            parts.append(f"{self.too_long:,} too long ({listed})")
        if self.dropped_by_hook:
            parts.append(f"{self.dropped_by_hook:,} dropped by the hook")
        return ", ".join(parts)
