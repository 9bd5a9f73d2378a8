"""One CSV file of a run's metrics, continued by every attempt.

Lightning's own CSV logger deletes the file of the previous attempt. Here a resumed run first drops
the rows after the step from which it resumes: those steps will be trained, and logged, again.

Counts of rows and tokens, and the share of time spent waiting for data, cover the time since the
previous row, or since the attempt started.
"""

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from llada_sft import atomic
from llada_sft.training.log.metrics_rows import parse_metrics

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "lr",
    "gradient_norm",
    "examples",
    "tokens_per_s",
    "validation_loss",
    "tokens",
    "all_tokens",
    "fill",
    "rows",
    "bad_rows",
    "left_out_rows",
    "too_long",
    "data_wait",
    "epoch_progress",
    "skipped_steps",
    "all_tokens_per_s",
    "mfu",
    "balance",
    "gpu_gb",
    "resident_gb",
    "slowest_rank",
    "slowest_ratio",
)


class MetricsCsv(Logger):
    """Appends a row for each logged step.

    Args:
        path: The file; its folder is created.
        first_step: Rows after this step are dropped.
        more_columns: Columns in addition to those of every run.
        require_owner: Called before each write; does not return if another process owns the run.
    """

    def __init__(
        self,
        path: Path,
        first_step: int,
        more_columns: Sequence[str] = (),
        require_owner: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._require_owner = require_owner
        self._path, self._first_step, self._ready = path, first_step, False
        self._columns = tuple(dict.fromkeys((*COLUMNS, *more_columns)))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run directory has the config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._require_owner()
        if not self._ready:
            self._keep_rows()
        size = self._path.stat().st_size
        try:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow({"step": step, **metrics})
        except OSError:
            # Half a row would spoil the next one.
            os.truncate(self._path, size)
            raise

    def _keep_rows(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_metrics(self._path)
        if not rows and self._path.is_file() and not self._has_header():
            # Kept: a person may still recover rows from it.
            self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
        kept = [row for row in rows if int(row["step"]) <= self._first_step]
        with atomic.replacing(self._path) as partial, partial.open("w", newline="") as file:
            # A resumed run may have lost a source.
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        self._ready = True

    def _has_header(self) -> bool:
        with self._path.open("rb") as file:
            return file.readline().startswith(b"step,")


def data_wait(rows: Sequence[Mapping[str, str]]) -> float:
    """Return the share of the logged training time that was spent waiting for data.

    Args:
        rows: What `read_metrics` returns; rows of validations are skipped.
    """
    steps = [row for row in rows if row["data_wait"]]
    # The length of an interval follows from its tokens and their rate.
    seconds = [float(row["tokens"]) / float(row["tokens_per_s"]) for row in steps]
    waited = [float(row["data_wait"]) * of for row, of in zip(steps, seconds, strict=True)]
    return sum(waited) / sum(seconds) if steps else 0.0


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics file; incomplete or damaged lines are skipped."""
    return parse_metrics(path.read_bytes()) if path.is_file() else []
