"""quarantine/ -> how many rows are bad, and why; and some of them with their messages."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llada_sft.cluster import run_files
from llada_sft.report.limits import Limits
from llada_sft.report.not_read import lines_not_read
from llada_sft.run_dir import RunDir

# Of all ranks' files together.
_MAX_BYTES = 32 << 20


def quarantined_rows(run: RunDir, limits: Limits, problems: list[str]) -> dict[str, Any]:
    """Count the bad rows of all ranks.

    Returns:
        `reasons`: the count of each, the most frequent first; `files`: the same by file, the first
        ones; `rows`: file, line, reason and message of the first bad rows; `total`.
    """
    rows = {(row["file"], row["line"]): row for row in _all_rows(run, problems)}
    reasons = Counter(row["reason"] for row in rows.values())
    files = Counter(row["file"] for row in rows.values())
    shown = list(rows.values())[: limits.bad_rows]
    return {
        "reasons": [[limits.cut(reason), count] for reason, count in reasons.most_common(50)],
        "files": [[limits.cut(file), count] for file, count in files.most_common(20)],
        "rows": [
            [limits.cut(row["file"]), row["line"], row["reason"], limits.cut(row["message"])]
            for row in shown
        ],
        "total": len(rows),
    }


def _all_rows(run: RunDir, problems: list[str]) -> Iterator[dict[str, Any]]:
    room, damaged = _MAX_BYTES, 0
    for path in sorted(run.quarantine.glob("rank_*.jsonl")):
        if room <= 0:
            problems.append(f"quarantine: only {_MAX_BYTES >> 20} MiB of its files are shown")
            break
        try:
            content = run_files.read_start(path, room)
        except OSError as error:
            problems.append(f"quarantine/{path.name}: cannot be read: {error.strerror}")
            continue
        room -= len(content)
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        rows = [row for line in lines if (row := _parse(line)) is not None]
        damaged += len(lines) - len(rows)
        yield from rows
    if damaged:
        problems.append(lines_not_read("quarantine", damaged))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("line")) is not int:
        return None
    texts = all(isinstance(row.get(name), str) for name in ("file", "reason", "message"))
    return row if texts else None
