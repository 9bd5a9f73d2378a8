"""A rank's log: where it is, its end, and following it while it grows."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llada_sft.cluster import history, job_states, restart_policy, run_files, slurm
from llada_sft.cluster.owner import identity, liveness, owner_sight
from llada_sft.cluster.watch import ending, status
from llada_sft.entry import INTERRUPTED
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

POLL_S = 1.0
# squeue and scontrol are a burden on the controller: asked seldom.
ASK_SLURM_EVERY_S = 15.0
_PIECE_BYTES = 1 << 16


def log_file(run: RunDir, rank: int) -> Path:
    """Return the log of a rank: submitit's of the last job, or that of a local run."""
    job_id = status.last_job(run)
    if job_id is None:
        return run.rank_log(rank)
    return run.slurm / f"{job_id}_{rank}_log.out"


def print_log(run: RunDir, rank: int) -> None:
    """Print the log of a rank.

    Raises:
        LaunchError: There is none.
    """
    log = log_file(run, rank)
    try:
        _print_from(log, 0)
    except FileNotFoundError:
        raise LaunchError(
            f"{log}: no such log: has the job started, and has it a rank {rank}?"
        ) from None


def follow(run: RunDir, rank: int, ask_every_s: float = ASK_SLURM_EVERY_S) -> int:
    """Print the log of a rank as it grows, until the run's job is over; then how it ended.

    Returns:
        The job's exit code; 130 after Ctrl-C, which ends the following and not the job.
    """
    job_id = status.last_job(run)
    watch = _Watch(run, job_id)
    try:
        follow_file(log_file(run, rank), watch.is_over, ask_every_s)
        with slurm.patience():
            ended = ending.find(run, job_id)
    except KeyboardInterrupt:
        print(f"\n{_goes_on(run, job_id)}", file=sys.stderr)
        return INTERRUPTED
    print(*ending.lines(run, ended), sep="\n", flush=True)
    return ended.exit_code


def follow_file(log: Path, is_over: Callable[[], bool], ask_every_s: float) -> None:
    """Print a file as it grows, from its start, until `is_over` and all is printed."""
    position = 0
    over = False
    next_question = 0.0
    while True:
        if time.monotonic() >= next_question:
            over = is_over()
            next_question = time.monotonic() + ask_every_s
        with suppress(FileNotFoundError):
            position = _print_from(log, position)
        if over:
            return
        time.sleep(min(POLL_S, ask_every_s))


def _print_from(log: Path, position: int) -> int:
    try:
        with run_files.open_regular(log) as file:
            file.seek(position)
            while chunk := file.read(_PIECE_BYTES):
                sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            return file.tell()
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.filename is None:
            # The output failed, not the log.
            raise
        raise LaunchError(f"{log}: cannot be read: {error.strerror}") from None


def _goes_on(run: RunDir, job_id: str | None) -> str:
    if job_id is None:
        return f"the run continues: {run.path}; to stop it, press Ctrl-C where it was launched"
    return f"job {job_id} continues; to stop it:  {run.shell_command('cancel')}"


class _Watch:
    """Asks whether a run is over; meanwhile it prints on stderr what the job waits for."""

    def __init__(self, run: RunDir, job_id: str | None) -> None:
        self._run, self._job_id = run, job_id
        self._said = ""

    def is_over(self) -> bool:
        if self._job_id is None:
            return self._journal_is_over(local=True)
        try:
            with slurm.patience():
                fields = slurm.job_fields(self._job_id)
        except LaunchError as error:
            self._say(f"{error}; still following")
            return self._journal_is_over(local=False)
        state = fields.get("JobState")
        if state is None or job_states.has_ended(state):
            return True
        if state == "PENDING":
            self._say(f"job {self._job_id} is PENDING ({fields.get('Reason', 'None')})")
        # Such as REQUEUE_HOLD: it waits for a person.
        elif ":" in (waits := job_states.described(self._job_id, fields)):
            self._say(f"job {waits}")
        return False

    def _journal_is_over(self, local: bool) -> bool:
        try:
            known = history.read(self._run.journal)
        except OSError as error:
            raise LaunchError(f"{self._run.journal}: cannot be read: {error.strerror}") from None
        if local:
            return not known.entries or known.is_at_rest or self._owner_is_gone()
        over = known.given_up is not None or known.last_cause in restart_policy.OVER
        return known.is_at_rest and over

    def _owner_is_gone(self) -> bool:
        """Return whether no process is left that could still write how a local run ended."""
        reader = identity.this_process("training")
        with suppress(OSError):
            sight = owner_sight.look(self._run.path, reader)
            return sight is not None and liveness.is_dead(sight.owner, reader, sight.seen)
        return False

    def _say(self, line: str) -> None:
        """Print a line, unless it is the same as the last one."""
        if line != self._said:
            print(line, file=sys.stderr, flush=True)
            self._said = line
