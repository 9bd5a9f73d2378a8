"""The speed that a run has had, from its metrics: for `launch.py --plan --measured RUN`."""

import csv
import io
from pathlib import Path
from statistics import median

from llada_sft.cluster import history, run_files
from llada_sft.config import load_run_config
from llada_sft.errors import ConfigError
from llada_sft.plan.report import MeasuredSpeed
from llada_sft.run_dir import RunDir

_READ_BYTES = 16 << 20


def measured_speed(path: Path) -> MeasuredSpeed:
    """Read the speed of a run's last attempt, whether it still runs or not.

    The first line of an attempt is not used if there are more: the compiler and the allocator take
    their time in it.

    Raises:
        ConfigError: It is not a run directory, or no step of it was logged.
    """
    run = RunDir(path.absolute())
    if not run.config.is_file():
        raise ConfigError(f"--measured: {path}: not a run directory: it has no {run.config.name}")
    config, attempts = load_run_config(run.config), history.read(run.journal).attempts
    first = (attempts[-1].resumed_step or 0) if attempts else 0
    ranks = attempts[-1].world_size if attempts else config.world_size
    rows = [row for row in _rows(run) if _number(row, "step") > first]
    speeds = _numbers(rows, "tokens_per_s")
    if not speeds:
        raise ConfigError(f"--measured: {run.metrics}: has no speed of a step of the last attempt")
    shares = _numbers(rows, "mfu")
    return MeasuredSpeed(
        run=str(path),
        model=config.model,
        lora=config.lora,
        ranks=ranks,
        lines=len(speeds),
        tokens_per_s=median(speeds[1:] or speeds) / ranks,
        mfu=median(shares[1:] or shares) if shares else None,
    )


def _rows(run: RunDir) -> list[dict[str, str]]:
    try:
        head = run_files.read_start(run.metrics, _READ_BYTES).partition(b"\n")[0]
        end = run_files.read_end(run.metrics, _READ_BYTES)
    except OSError as error:
        raise ConfigError(f"--measured: {run.metrics}: {error.strerror}") from None
    # The last line may be half written, and so may the first one of a part be.
    lines = end.decode(errors="replace").splitlines(keepends=True)
    whole = [line for line in lines[1:] if line.endswith("\n")]
    return list(csv.DictReader(io.StringIO("".join([f"{head.decode()}\n", *whole]))))


def _numbers(rows: list[dict[str, str]], column: str) -> list[float]:
    """Return the numbers of a column; rows of validations have none."""
    return [number for row in rows if (number := _number(row, column)) > 0]


def _number(row: dict[str, str], column: str) -> float:
    try:
        return float(row.get(column) or 0)
    except ValueError:
        return 0.0
