"""metrics.csv -> the curves of a run, with the numbers that the file has.

A step may have two rows: one of its training, one of its validation. A resumed run trains some
steps again: its rows replace those that an earlier attempt logged.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llada_sft.cluster import run_files
from llada_sft.report.limits import Limits
from llada_sft.report.not_read import lines_not_read
from llada_sft.report.thinned import thinned
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_rows import parse_metrics

HEADER_BYTES = 64 << 10
# Each row has their count since the row before it.
_COUNTED = ("rows", "bad_rows", "left_out_rows", "too_long", "tokens", "skipped_steps")
# Worked out here: how long the rows are.
TOKENS_PER_ROW = "tokens_per_row"
# How many steps with a NaN or an infinity are named.
_MOST_NAMED = 20
Row = dict[str, str]


def read_rows(run: RunDir, problems: list[str]) -> list[Row]:
    """Read the logged rows, one for each step; of a very long file the last ones.

    Raises:
        OSError: The file cannot be read; `FileNotFoundError` if there is none.
    """
    content = run_files.read_end(run.metrics)
    if run.metrics.stat().st_size > len(content):
        header = run_files.read_start(run.metrics, HEADER_BYTES).partition(b"\n")[0]
        content = header + content[content.index(b"\n") :]
        problems.append(f"metrics.csv: only its last {len(content) >> 20} MiB are shown")
    rows = parse_metrics(content)
    num_lines = content.count(b"\n") - 1
    if num_lines > len(rows):
        damaged = num_lines - len(rows) if rows else num_lines + 1
        problems.append(lines_not_read("metrics.csv", damaged))
    return _by_step(rows)


def _by_step(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each step, in their order; later attempts replace earlier ones."""
    merged: list[tuple[int, Row]] = []
    for row in rows:
        step = int(row["step"])
        while merged and merged[-1][0] > step:
            merged.pop()
        given = {name: value for name, value in row.items() if value}
        if merged and merged[-1][0] == step:
            merged[-1] = step, merged[-1][1] | given
        else:
            merged.append((step, given))
    return [row for _, row in merged]


def curves_of(rows: Sequence[Row], limits: Limits) -> dict[str, Any]:
    """Return the curves for the page.

    Returns:
        `series`: of each column its steps `x` and values `y`, thinned, with `logged`, the number of
        its values, and `nonfinite`: the steps at which it is NaN or infinite. `last`: of each
        column its last step and text. `sums`: of columns that count. `table`: the last rows.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    series = {name: one for name in columns if (one := _series(rows, name, limits))}
    if lengths := _tokens_per_row(rows, limits):
        series[TOKENS_PER_ROW] = lengths
    last = {name: [int(row["step"]), row[name]] for row in rows for name in row if name in series}
    shown = [name for name in columns if name in series]
    table = [[row["step"], *(row.get(name, "") for name in shown)] for row in rows]
    return {
        "series": series,
        "last": last,
        "sums": {name: _sum(rows, name) for name in _COUNTED if name in series},
        "table": {"columns": ["step", *shown], "rows": table[-limits.table_rows :]},
    }


def _series(rows: Sequence[Row], name: str, limits: Limits) -> dict[str, Any] | None:
    """Return a column; None if it has no number."""
    steps = [int(row["step"]) for row in rows if name in row]
    values = [_number(row[name]) for row in rows if name in row]
    return _thinned(steps, values, limits)


def _tokens_per_row(rows: Sequence[Row], limits: Limits) -> dict[str, Any] | None:
    counted = [row for row in rows if "tokens" in row and _is_positive(row.get("rows"))]
    values = [_ratio(row) for row in counted]
    return _thinned([int(row["step"]) for row in counted], values, limits)


def _ratio(row: Mapping[str, str]) -> float | None:
    tokens, read = _number(row["tokens"]), _number(row["rows"])
    return tokens / read if tokens is not None and read else None


def _thinned(
    steps: Sequence[int], values: Sequence[float | None], limits: Limits
) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    places = thinned(finite, limits.points)
    nonfinite = [
        [step, str(value)]
        for step, value in zip(steps, values, strict=True)
        if value is not None and not math.isfinite(value)
    ]
    return {
        "x": [steps[place] for place in places],
        "y": [finite[place] for place in places],
        "logged": len(values),
        "nonfinite": nonfinite[:_MOST_NAMED],
        "num_nonfinite": len(nonfinite),
    }


def _sum(rows: Sequence[Row], name: str) -> float:
    values = (_number(row[name]) for row in rows if name in row)
    total = math.fsum(value for value in values if value is not None and math.isfinite(value))
    return int(total) if total.is_integer() else total


def _is_positive(text: str | None) -> bool:
    number = _number(text or "")
    return number is not None and 0 < number < math.inf


def _number(text: str) -> float | None:
    """Return a number; None where there is none: the file may be damaged."""
    try:
        return float(text)
    except ValueError:
        return None
