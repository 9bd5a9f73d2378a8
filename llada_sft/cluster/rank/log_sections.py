"""The part of a rank's log that is of one attempt.

The attempts of a job, and all local attempts of a run, append to one file. Each rank therefore
prints a line before anything else of an attempt: that line begins its section.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from llada_sft.placement import Placement

_FIRST_LINE = re.compile(rb"attempt (\d{1,9}): rank \d+ of \d+")


def first_line(attempt: int, placement: Placement, node: str, now: datetime | None = None) -> str:
    """Return the line that begins an attempt in the log of a rank.

    Args:
        attempt: The attempt's number.
        placement: The rank.
        node: Its node; empty for a local run.
        now: When it starts; None means now.
    """
    place = f"rank {placement.rank} of {placement.world_size}" + (f" on {node}" if node else "")
    return f"attempt {attempt}: {place}, {(now or datetime.now(UTC)):%Y-%m-%d %H:%M:%S} UTC"


def find_section(lines: Iterable[bytes], attempt: int) -> tuple[int, int | None] | None:
    """Find the section of an attempt.

    Args:
        lines: All lines of a log, each with its newline.
        attempt: The attempt's number.

    Returns:
        Where it begins and ends, in bytes; its end is None if it is the last one. None if the log
        has no such section.
    """
    position, begin = 0, None
    for line in lines:
        if match := _FIRST_LINE.match(line):
            if begin is not None:
                return begin, position
            if int(match[1]) == attempt:
                begin = position
        position += len(line)
    return None if begin is None else (begin, None)
