"""`llada-sft status --json`: what the other commands show, for machines.

The keys are those of docs/status.md. They keep their names and meanings as long as `version` is 1;
keys may be added.
"""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

from llada_sft.cluster import slurm
from llada_sft.cluster.history import Attempt
from llada_sft.cluster.watch import pending
from llada_sft.cluster.watch.all_runs import summaries
from llada_sft.cluster.watch.summary import Summary, read_run, why_ended
from llada_sft.run_dir import RunDir

VERSION = 1


def all_as_json(root: Path) -> str:
    """Return all runs below a folder as a JSON object.

    Raises:
        ConfigError: The folder cannot be read.
    """
    with slurm.patience():
        found, problem = summaries(root)
    content: dict[str, object] = {"version": VERSION, "root": str(root.absolute())}
    content |= {"slurm_problem": problem or None, "runs": [_of_run(summary) for summary in found]}
    return json.dumps(content, indent=2, allow_nan=False)


def one_as_json(run: RunDir) -> str:
    """Return one run as a JSON object, with its attempts and the failures of the last one."""
    from llada_sft.cluster.watch.status import failure_lines

    with slurm.patience():
        summary, problem = read_run(run)
    content: dict[str, object] = {"version": VERSION, "slurm_problem": problem or None}
    content |= _of_run(summary)
    content |= {
        "attempts": [_of_attempt(attempt) for attempt in summary.history.attempts],
        "excluded_nodes": [entry.get("node") for entry in summary.history.excluded()],
        "failures": failure_lines(run),
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _of_run(summary: Summary) -> dict[str, object]:
    progress, checkpoint, last = summary.progress, summary.checkpoint, summary.history.last
    reason = summary.pending_reason
    return {
        "name": summary.run.path.name,
        "directory": str(summary.run.path),
        "state": summary.state,
        "job_id": summary.job_id,
        "job_state": summary.job.get("JobState"),
        "pending_reason": reason or None,
        "pending_words": pending.in_words(reason, summary.job_id or "") if reason else None,
        "estimated_start": _time(summary.estimated_start),
        "attempt": None if last is None else last.number,
        "nodes": summary.nodes or None,
        "world_size": None if last is None else last.world_size,
        "doing": summary.doing or None,
        "step": summary.step,
        "total_steps": summary.total_steps,
        "seconds_left": _finite(summary.seconds_left),
        "loss": progress.number("loss"),
        "lr": progress.number("lr"),
        "tokens_per_s": progress.number("tokens_per_s"),
        "mfu": progress.number("mfu"),
        "checkpoint_step": None if checkpoint is None else checkpoint.step,
        "checkpoint_time": None if checkpoint is None else _time(checkpoint.time),
        "cause": None if last is None or last.ended is None else last.ended.get("cause"),
        "why": (None if last is None else why_ended(last)) or None,
        "given_up": (summary.history.given_up or {}).get("detail"),
        "last_time": summary.last_time or None,
        "problems": [f"{name} {problem}" for name, problem in summary.problems.items()],
    }


def _of_attempt(attempt: Attempt) -> dict[str, object]:
    ended = attempt.ended or {}
    return {
        "attempt": attempt.number,
        "job_id": attempt.job_id,
        "restarts": attempt.restarts,
        "nodes": attempt.nodes or None,
        "world_size": attempt.world_size,
        "started": attempt.started.get("time"),
        "ended": ended.get("time"),
        "first_step": attempt.resumed_step,
        "last_step": attempt.known_step,
        "cause": ended.get("cause"),
        "detail": ended.get("detail"),
        "error": ended.get("error"),
        "exit_code": ended.get("exit_code"),
    }


def _time(moment: float | None) -> str | None:
    """Return a time as the journal writes it."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _finite(number: float | None) -> float | None:
    return number if number is None or math.isfinite(number) else None
