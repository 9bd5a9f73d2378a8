"""What a run is doing, from its own files and one question to SLURM; with or without sacct."""

import csv
import shutil
from pathlib import Path

from llada_sft.cluster import failures, journal, slurm, suspects
from llada_sft.cluster.causes import Cause
from llada_sft.config import Config, load_config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir


def open_run(path: str) -> tuple[RunDir, Config]:
    """Take up a run directory.

    Raises:
        ConfigError: the path is none.
    """
    run = RunDir(Path(path).absolute())
    if not run.config.exists():
        raise ConfigError(f"{path}: not a run directory: it has no config.yaml")
    return run, load_config(run.config)


def status_lines(run: RunDir, config: Config) -> list[str]:
    """Describe the run in a few lines."""
    rows = {
        "run": config.run.name,
        "directory": str(run.path),
        "model": f"{config.model.path} ({config.model.init})",
        "data": ", ".join(config.data.train_paths),
        "ranks": f"{config.slurm.nodes} nodes × {config.slurm.ranks_per_node},"
        f" global batch {config.global_batch_size} {config.global_batch_unit}",
        "job": _job(run),
        "progress": last_metrics(run),
        "checkpoints": _checkpoints(run),
        "attempts": _attempts(run),
    }
    if nodes := suspects.excluded(journal.read(run.journal)):
        rows["excluded"] = ", ".join(nodes)
    lines = [f"{name:<12} {text}" for name, text in rows.items()]
    return lines + [f"failure      {line}" for line in failure_lines(run)]


def last_metrics(run: RunDir) -> str:
    """Give the last step and the last value of each loss from the metrics file."""
    if not run.metrics.exists():
        return "no step yet"
    last: dict[str, str] = {}
    with run.metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            last.update({key: value for key, value in row.items() if key and value})
    losses = [f"{name} {value}" for name, value in last.items() if name.endswith("loss")]
    return ", ".join([f"step {last.get('step', '0')}", *losses])


def failure_lines(run: RunDir) -> list[str]:
    """Give what the ranks of the last attempt wrote about a mistake of the user's, once each."""
    errors = [one.error for one in failures.read_all(run) if one.cause == Cause.MISTAKE]
    return list(dict.fromkeys(line for error in errors for line in error.splitlines()))


def running_job(run: RunDir) -> str | None:
    """Give the id of the run's job if SLURM still has it, queued or running."""
    job_id = journal.last_job_id(run.journal)
    if job_id is None or shutil.which("scontrol") is None or slurm.has_ended(job_id):
        return None
    return job_id


def cancel_run(run: RunDir) -> str:
    """Cancel the run's job and give its id.

    Raises:
        LaunchError: the run has no job.
    """
    job_id = journal.last_job_id(run.journal)
    if job_id is None:
        raise LaunchError(f"{run.path}: has no SLURM job; stop a local run with Ctrl-C")
    slurm.cancel(job_id)
    return job_id


def _job(run: RunDir) -> str:
    job_id = journal.last_job_id(run.journal)
    if job_id is None:
        return "none (local, or not launched yet)"
    try:
        return f"{job_id} {slurm.job_state(job_id) or 'no longer known to SLURM'}"
    except LaunchError as error:
        return f"{job_id} ({error})"


def _checkpoints(run: RunDir) -> str:
    names = (path.name for path in run.checkpoints.glob("step_*") if path.suffix != ".partial")
    steps = sorted(int(name[5:]) for name in names if name[5:].isdecimal())
    return ", ".join(f"step {step}" for step in steps) or "none"


def _attempts(run: RunDir) -> str:
    entries = journal.read(run.journal)
    started = [entry for entry in entries if entry.get("event") == "started"]
    if not started:
        return "none"
    number = started[-1].get("attempt", len(started))
    ended = [e for e in entries if e.get("event") == "ended" and e.get("attempt") == number]
    return f"{number}, the last: {ended[-1]['cause'] if ended else 'running, or ended by force'}"
