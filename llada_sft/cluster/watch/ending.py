"""How a run's job ended, for the person at the terminal: its exit code, and a few lines.

The lines say why it ended, how far the training came, where the checkpoint is, and what to do next.
Most of this is in the journal; SLURM is asked if the batch script was killed before it could write.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from llada_sft.cluster import history, restart_policy, slurm
from llada_sft.cluster.causes import GIVEN_UP_EXIT_CODE, Cause
from llada_sft.cluster.history import Attempt
from llada_sft.cluster.run_files import printable
from llada_sft.cluster.watch import status
from llada_sft.cluster.watch.checkpoints import newest_of_run
from llada_sft.cluster.watch.progress import read_progress
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

_FIRST = {
    Cause.MISTAKE: "fix what the failure says, then  ",
    Cause.DISK_FULL: "make room on the disk, then  ",
    Cause.NONFINITE: "lower optim.lr, or set train.on_nonfinite=skip, then  ",
}


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        exit_code: Of the job.
        cause: Of the last attempt; None where the journal does not know.
        why: The reason, in one line.
    """

    exit_code: int
    cause: Cause | None
    why: str


def find(run: RunDir, job_id: str | None) -> Ending:
    """Find out how the run's last attempt ended; for a job, its attempts only."""
    with suppress(OSError):
        last = history.read(run.journal).last
        if last is not None and last.job_id == job_id:
            return _of_attempt(last, job_id)
    return _of_slurm(job_id)


def lines(run: RunDir, ending: Ending) -> list[str]:
    """Describe an ending to the person at the terminal."""
    return [printable(f"{name:<12} {text}") for name, text in _rows(run, ending)]


def _rows(run: RunDir, ending: Ending) -> Iterator[tuple[str, str]]:
    yield "ended", f"{ending.why} (exit code {ending.exit_code})"
    with suppress(OSError, ValueError):
        yield "progress", read_progress(run).line()
    with suppress(OSError):
        newest = newest_of_run(run)
        yield "checkpoint", "none" if newest is None else str(newest)
    if ending.exit_code:
        for line in status.failure_lines(run):
            yield "failure", line
    if ending.cause == Cause.FINISHED:
        yield "next", run.shell_command("export", "OUT")
        return
    if ending.cause not in restart_policy.OVER:
        yield "details", f"{run.shell_command('status')}, {run.shell_command('logs')}"
    first = _FIRST.get(ending.cause, "") if ending.cause else ""
    yield "next", first + run.shell_command("resume")


def _of_attempt(attempt: Attempt, job_id: str | None) -> Ending:
    ended, given_up = attempt.ended, attempt.given_up
    if ended is None:
        return _of_slurm(job_id)
    cause = attempt.cause
    details = (ended.get("cause"), ended.get("detail"), ended.get("error"))
    why = ": ".join(part for part in details if part)
    if given_up is not None:
        code = given_up.get("exit_code", GIVEN_UP_EXIT_CODE)
        detail = given_up.get("detail", "")
        return Ending(code, cause, f"given up: {detail}; the last attempt: {why}")
    if cause in restart_policy.STOPS and job_id is not None and "error" not in ended:
        # The job was to run again, and has ended while it waited.
        return _of_slurm(job_id)
    return Ending(
        ended.get("exit_code", 1 if cause is None else restart_policy.exit_code_of(cause)),
        cause,
        why,
    )


def _of_slurm(job_id: str | None) -> Ending:
    if job_id is None:
        return Ending(1, None, "the journal does not say why")
    try:
        fields = slurm.job_fields(job_id)
    except LaunchError as error:
        return Ending(1, None, f"unknown: {error}")
    state = fields.get("JobState")
    if state is None:
        return Ending(
            1, None, f"unknown: neither the journal nor SLURM knows how job {job_id} ended"
        )
    if state == "CANCELLED":
        return Ending(restart_policy.exit_code_of(Cause.CANCELLED), Cause.CANCELLED, "cancelled")
    code, _, number = fields.get("ExitCode", "0:0").partition(":")
    exit_code = int(code) or (128 + int(number) if number.isdecimal() and int(number) else 0)
    if state != "COMPLETED":
        exit_code = exit_code or 1
    return Ending(exit_code, None, f"SLURM calls job {job_id} {state}")
