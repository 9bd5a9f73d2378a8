"""How far a run is, from the end of its metrics file: step, losses, rate, speed, and time left."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

from llada_sft.cluster import run_files
from llada_sft.run_dir import RunDir

# What is read of metrics.csv: its columns, and enough rows for the last of a validation to be
# among them.
HEADER_BYTES = 64 << 10
METRICS_BYTES = 1 << 20
# The time of a step is the mean of so many rows.
_RECENT_ROWS = 20
# The numbers that the line of progress shows besides the losses.
_SHOWN = {
    "lr": "lr {:.3g}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "gpu_gb": "{:.1f} GB",
}
_SLOWEST = ("slowest_rank", "slowest_ratio")
NO_STEP = "no step yet"


@dataclass(frozen=True)
class RunProgress:
    """What the last rows of a metrics file say.

    Attributes:
        step: The last step; 0 if there is none.
        values: The last value of each column, as it is written.
        step_seconds: Seconds of a recent step; None if they are not known.
    """

    step: int = 0
    values: Mapping[str, str] = field(default_factory=dict)
    step_seconds: float | None = None

    def number(self, name: str) -> float | None:
        """Return a value; None if there is none, or none that is finite."""
        with suppress(KeyError, ValueError):
            value = float(self.values[name])
            return value if abs(value) < float("inf") else None
        return None

    def seconds_left(self, total_steps: int | None) -> float | None:
        """Return an estimate of the seconds until the last step; None if it is not known."""
        if self.step_seconds is None or total_steps is None or total_steps < self.step:
            return None
        return (total_steps - self.step) * self.step_seconds

    def line(self, total_steps: int | None = None, known_step: int = 0) -> str:
        """Return the step, of how many, the losses and the speed in one line.

        `known_step` is that of the journal: a short run may end before its first row of metrics.
        """
        if not self.values and known_step == 0:
            return NO_STEP
        losses = [
            f"{name} {_shortened(value)}"
            for name, value in self.values.items()
            if name.endswith("loss")
        ]
        # What was known at the last checkpoint may be an estimate, and too low by now.
        step = self.step if self.values else known_step
        known = total_steps is not None and step <= total_steps
        shown_step = f"step {step} of {total_steps}" if known else f"step {step}"
        return ", ".join([shown_step, *losses, *self._speeds()])

    def _speeds(self) -> Iterator[str]:
        """Yield the numbers that the file has; not every value is one if the file is damaged."""
        for name, form in _SHOWN.items():
            if (value := self.number(name)) is not None:
                yield form.format(value)
        rank, ratio = map(self.number, _SLOWEST)
        if rank is not None and ratio is not None:
            yield f"slowest rank {rank:.0f} (by itself {ratio:.2f} × the median)"


def read_progress(run: RunDir, max_bytes: int = METRICS_BYTES) -> RunProgress:
    """Read how far a run is; torn lines, and lines of another file, are skipped.

    Args:
        run: The run directory.
        max_bytes: How much of the end of the file is read.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a metrics file.
    """
    try:
        start = run_files.read_start(run.metrics, HEADER_BYTES)
        end = run_files.read_end(run.metrics, max_bytes)
    except FileNotFoundError:
        if run.metrics.is_symlink():
            raise
        return RunProgress()
    columns = next(_csv_rows(start.partition(b"\n")[0] + b"\n" if b"\n" in start else b""), [])
    if "step" not in columns:
        if start:
            raise ValueError(f"{run.metrics}: has no column step")
        return RunProgress()
    index = columns.index("step")
    rows = [
        row
        for row in _csv_rows(end)
        if len(row) == len(columns) and row[index].isascii() and row[index].isdecimal()
    ]
    last: dict[str, str] = {}
    for row in rows:
        values = {name: value for name, value in zip(columns, row, strict=True) if value}
        if "tokens_per_s" in values:
            # Of an earlier attempt, if this step has none: one rank waits for nobody.
            for name in _SLOWEST:
                last.pop(name, None)
        last |= values
    step = last.get("step", "0")
    # Python refuses thousands of digits.
    return RunProgress(int(step) if len(step) < 19 else 0, last, _step_seconds(columns, rows))


def _step_seconds(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> float | None:
    """Return the mean seconds of a recent step; None if the rows do not say it.

    The length of the time between two rows follows from its tokens and their rate.
    """
    names = ("step", "tokens", "tokens_per_s")
    if not all(name in columns for name in names):
        return None
    steps_at, tokens_at, rates_at = (columns.index(name) for name in names)
    seconds, steps = 0.0, 0
    measured = [row for row in rows if row[rates_at]][-_RECENT_ROWS - 1 :]
    for before, row in pairwise(measured):
        with suppress(ValueError, ZeroDivisionError):
            elapsed = float(row[tokens_at]) / float(row[rates_at])
            made = int(row[steps_at]) - int(before[steps_at])
            if made > 0 and 0 < elapsed < float("inf"):
                seconds, steps = seconds + elapsed, steps + made
    return seconds / steps if steps else None


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: "1:02:03"."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _shortened(value: str) -> str:
    try:
        return f"{float(value):.5g}"
    except ValueError:
        return value


def _csv_rows(content: bytes) -> Iterator[list[str]]:
    """Yield the rows of whole lines; one that is not CSV is skipped."""
    *lines, _ = content.decode("utf-8", errors="replace").split("\n")
    for line in lines:
        if '"' not in line:
            # As numbers always are; the csv module takes five times as long.
            yield line.rstrip("\r").split(",")
            continue
        try:
            yield from csv.reader([line])
        except csv.Error:
            continue
