"""The rows of metrics.csv, whole ones only; needs neither torch nor lightning."""

import csv
import re
from collections.abc import Mapping

# The csv module raises for longer fields.
_MAX_LINE = 1 << 16
_STEP = re.compile(r"[0-9]{1,18}")


def parse_metrics(content: bytes) -> list[dict[str, str]]:
    """Return the rows of a metrics file; incomplete or damaged lines are skipped."""
    text = content.decode(errors="replace")
    # A number that lost its last digits is still a number: only the newline shows a whole line.
    lines = text[: text.rfind("\n") + 1].splitlines()
    whole_lines = [line for line in lines if len(line) <= _MAX_LINE]
    # No value needs quotes: a stray quote must not take the following lines into its field.
    rows = csv.DictReader(whole_lines, quoting=csv.QUOTE_NONE)
    return [row for row in rows if _STEP.fullmatch(row.get("step") or "") and _is_whole(row)]


def _is_whole(row: Mapping[str | None, object]) -> bool:
    """Return whether a row has as many values as there are columns."""
    return None not in row and None not in row.values()
