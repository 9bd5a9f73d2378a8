"""What a run is doing, from its own files and one question to SLURM; with or without sacct."""

import csv
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from llada_sft.cluster import failures, job_states, journal, slurm, suspects
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.moved import own_job_id, rebase
from llada_sft.config import Config, load_config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

SHOWN_ATTEMPTS = 5
# What one line says, without a traceback.
_MENDED_BY_THE_USER = (Cause.MISTAKE, Cause.DISK_FULL, Cause.NONFINITE)


def open_run(path: str) -> tuple[RunDir, Config]:
    """Take up a run directory and its config.

    Raises:
        ConfigError: the path is none.
    """
    run = find_run(path)
    return run, rebase(load_config(run.config), run)


def find_run(path: str) -> RunDir:
    """Take up a run directory, whose config may be of another version.

    Raises:
        ConfigError: the path is none.
    """
    run = RunDir(Path(path).absolute())
    if not run.config.exists():
        raise ConfigError(f"{path}: not a run directory: it has no config.yaml")
    return run


def status_lines(run: RunDir, config: Config) -> list[str]:
    """Describe the run in a few lines."""
    entries = journal.read(run.journal)
    rows = {
        "run": config.run.name,
        "directory": str(run.path),
        "model": f"{config.model.path} ({config.model.init})",
        "data": ", ".join(config.data.train_paths),
        "ranks": f"{_nodes(config)} nodes × {config.slurm.ranks_per_node},"
        f" global batch {config.global_batch_size} {config.global_batch_unit}",
        "job": _job(run),
        "progress": last_metrics(run, total_steps(entries)),
        "checkpoints": _checkpoints(run),
    }
    lines = [f"{name:<12} {text}" for name, text in rows.items()]
    first, *others = attempt_lines(entries)
    lines += [f"attempts     {first}", *(f"{'':<12} {line}" for line in others)]
    lines += _after_failures(entries)
    return lines + [f"failure      {line}" for line in failure_lines(run)]


def newest_step(run: RunDir) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    names = [path.name[5:] for path in run.checkpoints.glob("step_*") if path.is_dir()]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def total_steps(entries: Sequence[Entry]) -> int | None:
    """Return the steps of the whole training, as the last checkpoint knew them."""
    found = [entry.get("total_steps") for entry in entries]
    known = [number for number in found if type(number) is int]
    return known[-1] if known else None


def last_metrics(run: RunDir, total_steps: int | None = None) -> str:
    """Give the last step, of how many, and the last value of each loss from the metrics file."""
    if not run.metrics.exists():
        return "no step yet"
    last: dict[str, str] = {}
    with run.metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            last.update({key: value for key, value in row.items() if key and value})
    losses = [f"{name} {value}" for name, value in last.items() if name.endswith("loss")]
    step = last.get("step", "0")
    # What was known at the last checkpoint may be an estimate, and too low by now.
    known = total_steps is not None and step.isdecimal() and int(step) <= total_steps
    return ", ".join([f"step {step} of {total_steps}" if known else f"step {step}", *losses])


def failure_lines(run: RunDir) -> list[str]:
    """Give what the ranks of the last attempt wrote that the user can mend, once each."""
    errors = [one.error for one in failures.read_all(run) if one.cause in _MENDED_BY_THE_USER]
    return list(dict.fromkeys(line for error in errors for line in error.splitlines()))


def running_job(run: RunDir) -> str | None:
    """Give the id of the run's job if SLURM still has it, queued or running."""
    job_id = own_job_id(run)
    if job_id is None or shutil.which("scontrol") is None or slurm.has_ended(job_id):
        return None
    return job_id


def cancel_run(run: RunDir) -> str:
    """Cancel the run's job and give its id.

    Raises:
        LaunchError: the run has no job.
    """
    job_id = own_job_id(run)
    if job_id is None:
        raise LaunchError(f"{run.path}: has no SLURM job; stop a local run with Ctrl-C")
    slurm.cancel(job_id)
    return job_id


def _nodes(config: Config) -> str:
    return " to ".join(map(str, config.slurm.elastic or (config.slurm.nodes,)))


def _job(run: RunDir) -> str:
    job_id = own_job_id(run)
    if job_id is None:
        return "none (local, or not launched yet)"
    try:
        return job_states.described(job_id, slurm.job_fields(job_id))
    except LaunchError as error:
        return f"{job_id} ({error})"


def _checkpoints(run: RunDir) -> str:
    found = (path for path in run.checkpoints.glob("step_*") if path.name[5:].isdecimal())
    paths = sorted(found, key=lambda path: int(path.name[5:]))
    damaged = ", ".join(path.name for path in sorted(run.checkpoints.glob("step_*.damaged*")))
    ending = f"; damaged: {damaged}" if damaged else ""
    if not paths:
        return f"none{ending}"
    steps = ", ".join(f"step {path.name[5:]}" for path in paths)
    return f"{steps} ({age(time.time() - paths[-1].stat().st_mtime)} ago){ending}"


def age(seconds: float) -> str:
    """Say how long something took or is past, in its largest unit: "40 s", "12 min", "3 h"."""
    for unit_s, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def attempt_lines(entries: list[Entry]) -> list[str]:
    """Give the last attempts, one line each: number, nodes, steps, and why it ended."""
    grouped = journal.attempts(entries)
    if not grouped:
        return ["none"]
    lines = [_attempt_line(number, own) for number, own in enumerate(grouped, start=1)]
    earlier = [f"{len(lines) - SHOWN_ATTEMPTS} earlier"] if len(lines) > SHOWN_ATTEMPTS else []
    return [*earlier, *lines[-SHOWN_ATTEMPTS:]]


def _attempt_line(number: int, entries: list[Entry]) -> str:
    nodes = entries[0].get("nodes")
    parts = [str(number), *([f"on {nodes}"] if nodes else []), _steps(entries)]
    ended = next((e for e in entries if e.get("event") == "ended"), None)
    why = "running, or ended by force"
    if ended:
        why = ended.get("cause", "ended") + (f" ({ended['detail']})" if "detail" in ended else "")
        why += f": {ended['error']}" if "error" in ended else ""
    return ", ".join(part for part in parts if part) + f": {why}"


def _steps(entries: list[Entry]) -> str:
    """Give the steps that an attempt went on from and came to, as far as it said so."""
    first = next((e.get("step") for e in entries if e.get("event") == "resumed"), None)
    known = [e["step"] for e in entries if "step" in e]
    return "" if first is None else f"steps {first} to {max(known)}"


def _after_failures(entries: list[Entry]) -> list[str]:
    """Say what follows from failures: nodes that are left out, and whether the run was given up."""
    nodes = suspects.excluded(entries)
    lines = [f"excluded     {', '.join(nodes)}"] if nodes else []
    # Until it is started again, by hand.
    events = [e for e in entries if e.get("event") in ("launched", "started", "given_up")]
    if events and events[-1].get("event") == "given_up":
        lines.append(f"given up     {events[-1].get('detail', '')}")
    return lines
