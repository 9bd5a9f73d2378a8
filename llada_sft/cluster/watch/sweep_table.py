"""The runs of a sweep in one table: their values, state, step and losses, the best first.

SLURM is asked once, for all jobs together. The best run is the one with the lowest validation
loss, or the lowest loss where none of the runs was validated yet.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llada_sft.cluster import history, job_states, slurm
from llada_sft.cluster.history import History
from llada_sft.cluster.run_files import printable
from llada_sft.cluster.sweep.sweep_file import RunOfSweep, read_sweep
from llada_sft.cluster.watch.progress import RunProgress, read_progress
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

LOSSES = ("validation_loss", "loss")
# Enough for the last row of a validation to be among them.
_METRICS_BYTES = 256 << 10


@dataclass(frozen=True)
class SweepRow:
    """A run of a sweep as it stands.

    Attributes:
        name: The name of its directory.
        values: Its values by their keys.
        state: SLURM's word for its job, or how its last attempt ended.
        step: The last step that is logged; 0 if none is.
        losses: The last of each of `LOSSES` that is logged.
    """

    name: str
    values: Mapping[str, Any]
    state: str
    step: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)


def table_lines(folder: Path) -> list[str]:
    """Return a sweep's table, a line for each run.

    Raises:
        ConfigError: Its list of runs cannot be read.
    """
    with slurm.patience():
        rows = sweep_rows(folder)
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    shown = [name for name in LOSSES if any(name in row.losses for row in rows)]
    table = [
        ["run", "state", "step", *shown, *keys],
        *(_cells(row, shown, keys) for row in rows),
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def sweep_rows(folder: Path) -> list[SweepRow]:
    """Return the runs of a sweep, the best first, and those without a loss last.

    Raises:
        ConfigError: Its list of runs cannot be read.
    """
    runs = read_sweep(folder)
    histories = [_history(run.run) for run in runs]
    states = _states_of_jobs([known.job_id for known in histories])
    rows = [_row(run, known, states) for run, known in zip(runs, histories, strict=True)]
    name = LOSSES[0] if any(LOSSES[0] in row.losses for row in rows) else LOSSES[1]
    return sorted(rows, key=lambda row: row.losses.get(name, float("inf")))


def cancel_sweep(folder: Path) -> list[str]:
    """Cancel the jobs of a sweep that are in the queue or run, and return their numbers.

    Raises:
        ConfigError: Its list of runs cannot be read.
        LaunchError: SLURM does not answer.
    """
    job_ids = [_history(run.run).job_id for run in read_sweep(folder)]
    states = _ask_states(job_ids)
    active = [job_id for job_id in job_ids if job_id in states]
    if active:
        # The last first: a job that waits for another one would start when that is cancelled.
        slurm.run_tool("scancel", *reversed(active))
    return active


def _history(run: RunDir) -> History:
    try:
        return history.read(run.journal)
    except OSError:
        return History([])


def _row(run: RunOfSweep, known: History, states: Mapping[str, str]) -> SweepRow:
    progress = _progress(run.run)
    known_losses = {name: progress.number(name) for name in LOSSES}
    return SweepRow(
        name=run.run.path.name,
        values=run.values,
        state=_state(run.run, known, states),
        step=progress.step,
        losses={name: loss for name, loss in known_losses.items() if loss is not None},
    )


def _state(run: RunDir, known: History, states: Mapping[str, str]) -> str:
    if (job_id := known.job_id) and job_id in states:
        return states[job_id]
    if known.given_up is not None:
        return "given up"
    if not known.entries:
        return "not launched" if run.path.exists() else "no directory"
    if known.open is not None:
        return "running" if known.job_id is None else "ended by force"
    return known.last_cause or ("not started" if known.job_id is None else "ended before it began")


def _states_of_jobs(job_ids: Sequence[str | None]) -> dict[str, str]:
    try:
        return _ask_states(job_ids)
    except LaunchError:
        return {job_id: "unknown (SLURM does not answer)" for job_id in job_ids if job_id}


def _ask_states(job_ids: Sequence[str | None]) -> dict[str, str]:
    """Ask SLURM for the states of jobs, once; those that are over are not in the answer.

    Raises:
        LaunchError: SLURM does not answer.
    """
    jobs = slurm.job_table([job_id for job_id in job_ids if job_id is not None])
    states = {job_id: fields.get("JobState", "") for job_id, fields in jobs.items()}
    return {job: state for job, state in states.items() if not job_states.has_ended(state)}


def _progress(run: RunDir) -> RunProgress:
    """Return how far a run is; where its metrics cannot be read, as if there were none."""
    try:
        return read_progress(run, _METRICS_BYTES)
    except (OSError, ValueError):
        return RunProgress()


def _cells(row: SweepRow, losses: Sequence[str], keys: Sequence[str]) -> list[str]:
    shown = [f"{row.losses[name]:.5g}" if name in row.losses else "" for name in losses]
    values = [_shown(row.values[key]) if key in row.values else "" for key in keys]
    cells = [row.name, row.state, str(row.step), *shown, *values]
    return [printable(cell) for cell in cells]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
