"""The lines of one attempt in a log to which several have appended."""

from datetime import UTC, datetime

import pytest

from llada_sft.cluster.rank.log_sections import find_section, first_line
from llada_sft.placement import Placement

PLACE = Placement(
    rank=1, world_size=4, local_rank=1, node_rank=0, master_addr="a", master_port=10_000
)
NOW = datetime(2026, 11, 28, 1, 2, 3, tzinfo=UTC)


def test_the_first_line_of_an_attempt() -> None:
    assert first_line(2, PLACE, "", NOW) == "attempt 2: rank 1 of 4, 2026-11-28 01:02:03 UTC"
    assert (
        first_line(2, PLACE, "node7", NOW)
        == "attempt 2: rank 1 of 4 on node7, 2026-11-28 01:02:03 UTC"
    )


def section(log: str, attempt: int) -> str | None:
    found = find_section((line.encode() for line in log.splitlines(keepends=True)), attempt)
    return None if found is None else log[found[0] : found[1]]


ONE, TWO = (first_line(number, PLACE, "", NOW) for number in (1, 2))


@pytest.mark.parametrize(
    ("log", "attempt", "expected"),
    [
        (f"srun: a line\n{ONE}\na\n{TWO}\nb\nc", 1, f"{ONE}\na\n"),
        (f"srun: a line\n{ONE}\na\n{TWO}\nb\nc", 2, f"{TWO}\nb\nc"),
        (f"{ONE}\na\n{TWO}\nb\n", 3, None),
        ("a\n", 1, None),
        ("", 1, None),
        # A line that only speaks of it.
        (f"{ONE}\nattempt 2: failed\nsee {TWO}\n", 1, f"{ONE}\nattempt 2: failed\nsee {TWO}\n"),
        (f"{ONE}\nattempt 2: failed\nsee {TWO}\n", 2, None),
    ],
)
def test_a_section_ends_where_the_next_begins(log: str, attempt: int, expected: str | None) -> None:
    assert section(log, attempt) == expected
