"""`llada-sft status` without a run: one line for each run below run.root.

SLURM is asked once, for all jobs together. Runs that are active come first, then the others, the
one with the latest journal entry first.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from llada_sft.cluster import slurm
from llada_sft.cluster.history import History
from llada_sft.cluster.run_files import printable
from llada_sft.cluster.watch import pending
from llada_sft.cluster.watch.find_run import list_runs
from llada_sft.cluster.watch.progress import clock
from llada_sft.cluster.watch.starting import age
from llada_sft.cluster.watch.summary import (
    Jobs,
    Summary,
    may_be_queued,
    own_job,
    read_history,
    seconds_since,
    summary_of,
    why_ended,
    with_unreadable_journal,
)
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

COLUMNS = ("RUN", "STATE", "STEP", "LOSS", "TOKENS/S", "LEFT", "NODES", "CHECKPOINT", "WHY")
# A dozen rows: enough for the last of a step, also after a validation.
_METRICS_BYTES = 8 << 10
_ACTIVE = ("running", "starting", "ending", "pending", "unknown")
_MAX_WHY = 100


def summaries(root: Path) -> tuple[list[Summary], str]:
    """Summarize all runs below a folder, in the order in which they are shown.

    Returns:
        The summaries, and why SLURM did not answer; empty if it did.

    Raises:
        ConfigError: The folder cannot be read.
    """
    histories: dict[RunDir, History] = {}
    unreadable: dict[RunDir, str] = {}
    for path in list_runs(root):
        run = RunDir(path.absolute())
        try:
            histories[run] = read_history(run)
        except OSError as error:
            histories[run] = History([])
            unreadable[run] = f"cannot be read: {error.filename}: {error.strerror}"
    jobs, problem = _ask(
        job_id
        for run, history in histories.items()
        if may_be_queued(history) and (job_id := own_job(run, history))
    )
    found = []
    for run, history in histories.items():
        summary = summary_of(run, history, jobs, _METRICS_BYTES)
        found.append(
            summary if run not in unreadable else with_unreadable_journal(summary, unreadable[run])
        )
    return _in_order(found), problem


def as_table(root: Path) -> str:
    """Return one line for each run, below a line with the names of the columns.

    Raises:
        ConfigError: The folder cannot be read.
    """
    with slurm.patience():
        return "\n".join(_lines(root))


def _lines(root: Path) -> list[str]:
    found, problem = summaries(root)
    if not found:
        return [f"{root}: no run here; another folder:  llada-sft status --root DIR"]
    rows = [COLUMNS, *(_row(summary, root) for summary in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [*lines, *([f"SLURM does not answer: {printable(problem)}"] if problem else [])]


def _ask(job_ids: Iterable[str]) -> tuple[Jobs, str]:
    try:
        return slurm.job_table(sorted(set(job_ids))), ""
    except LaunchError as error:
        return None, str(error)


def _in_order(found: Sequence[Summary]) -> list[Summary]:
    newest_first = sorted(found, key=lambda summary: summary.last_time, reverse=True)
    return sorted(newest_first, key=_rank_of_state)


def _rank_of_state(summary: Summary) -> int:
    return _ACTIVE.index(summary.state) if summary.state in _ACTIVE else len(_ACTIVE)


def _row(summary: Summary, root: Path) -> tuple[str, ...]:
    progress, total, left = summary.progress, summary.total_steps, summary.seconds_left
    step = summary.step
    speed = progress.number("tokens_per_s") if summary.state == "running" else None
    cells = (
        str(summary.run.path.relative_to(root.absolute())),
        summary.state,
        f"{step}/{total}" if total and total >= step else str(step),
        _loss(summary),
        "" if speed is None else f"{speed:,.0f}",
        "" if left is None else f"~{clock(left)}",
        summary.nodes,
        _checkpoint(summary),
        _why(summary),
    )
    return tuple(printable(cell)[:_MAX_WHY] for cell in cells)


def _loss(summary: Summary) -> str:
    loss = summary.progress.number("loss")
    return "" if loss is None else f"{loss:.5g}"


def _checkpoint(summary: Summary) -> str:
    newest = summary.checkpoint
    return "" if newest is None else f"{newest.step} ({age(seconds_since(newest.time))} ago)"


def _why(summary: Summary) -> str:
    """Return what is most worth knowing: why it is damaged, waits, starts, or has ended."""
    for name, problem in summary.problems.items():
        return f"{name} {problem}"
    if summary.state == "pending":
        reason = summary.pending_reason
        return pending.in_words(reason, summary.job_id or "") if reason else ""
    if summary.doing or summary.state in _ACTIVE:
        return summary.doing
    if summary.history.given_up is not None:
        return summary.history.given_up.get("detail", "")
    last = summary.history.last
    return "" if last is None else why_ended(last)
