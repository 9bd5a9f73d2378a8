"""Counts of rows: their sum, and the line that they make."""

import pytest

from llada_sft.data.examples.row_counts import RowCounts


def test_counts_are_summed_by_reason() -> None:
    one = RowCounts(rows=5, bad={"not_json": 2, "bad_record": 1}, clipped=1, dropped_by_hook=1)
    other = RowCounts(rows=7, bad={"not_json": 1, "nul_byte": 1}, clipped=2, skipped=4)
    total = one + other
    assert total == RowCounts(
        rows=12,
        bad={"not_json": 3, "bad_record": 1, "nul_byte": 1},
        clipped=3,
        skipped=4,
        dropped_by_hook=1,
    )
    assert (total.num_bad, total.too_long) == (5, 7)
    assert one + RowCounts() == one


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (RowCounts(rows=36976), "36,976 rows"),
        (RowCounts(rows=1, dropped_by_hook=1), "1 rows, 1 dropped by the hook"),
        (
            RowCounts(rows=36976, bad={"bad_record": 1, "not_json": 2}, clipped=12),
            "36,976 rows, 3 bad (2 not_json, 1 bad_record: quarantine/), 12 too long (12 clipped)",
        ),
        (
            RowCounts(rows=9, bad={"b": 1, "a": 1}, clipped=2, skipped=3, dropped_by_hook=1),
            "9 rows, 2 bad (1 a, 1 b: quarantine/), 5 too long (2 clipped, 3 skipped), "
            "1 dropped by the hook",
        ),
    ],
)
def test_counts_in_a_line(counts: RowCounts, line: str) -> None:
    assert str(counts) == line
