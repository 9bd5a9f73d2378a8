"""What became of the rows that were read; the counts travel with the steps."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from llada_sft.data.records.unread import listed_unread


@dataclass(frozen=True)
class RowCounts:
    """Rows, and what became of them.

    Attributes:
        rows: Rows that were read, including bad ones and those the hook dropped.
        bad: Bad rows by reason (`quarantine.Reason`).
        clipped: Examples that were too long and were cut.
        skipped: Examples that were skipped because they were too long.
        dropped_by_hook: Rows of which the hook made no example.
        not_learned: Rows whose turns all say that they are not to be learned.
        special_tokens: Rows with special tokens in their texts.
        already_rendered: Those of them that begin as if a chat template had rendered them.
        unread: Fields that are not read, and how many rows have each.
    """

    rows: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)
    clipped: int = 0
    skipped: int = 0
    dropped_by_hook: int = 0
    not_learned: int = 0
    special_tokens: int = 0
    already_rendered: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())

    @property
    def too_long(self) -> int:
        return self.clipped + self.skipped

    @property
    def left_out(self) -> int:
        """Rows that are good, and of which there is no example."""
        return self.dropped_by_hook + self.not_learned

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(
            self.rows + other.rows,
            _sum(self.bad, other.bad),
            self.clipped + other.clipped,
            self.skipped + other.skipped,
            self.dropped_by_hook + other.dropped_by_hook,
            self.not_learned + other.not_learned,
            self.special_tokens + other.special_tokens,
            self.already_rendered + other.already_rendered,
            _sum(self.unread, other.unread),
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
        if self.not_learned:
            parts.append(f"{self.not_learned:,} skipped (no turn is to be learned)")
        if self.special_tokens:
            parts.append(f"{self.special_tokens:,} with special tokens in their text")
        if self.already_rendered:
            parts.append(f"{self.already_rendered:,} rendered already")
        if self.unread:
            parts.append(f"not read: {listed_unread(self.unread)}")
        return ", ".join(parts)


# What became of nearly every row: one of these is much sooner counted than made and added.
GOOD_ROW = RowCounts(rows=1)


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    # Seldom any: this runs for every row of a run.
    return dict(Counter(one) + Counter(other)) if other else one
