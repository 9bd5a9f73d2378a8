"""Whether a run that is followed is over; meanwhile each change of its job's state is a line."""

import sys
import time
from collections.abc import Callable, Mapping

from llada_sft.cluster import history, job_states, restart_policy, slurm
from llada_sft.cluster.watch import pending
from llada_sft.cluster.watch.summary import Jobs, owner_is_gone
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir


class JobWatch:
    """Asks SLURM, or the journal of a local run, and prints changes on stderr.

    Args:
        run: The run directory.
        job_id: Its job; None for a local run.

    Attributes:
        jobs: What SLURM said last of the job; None if it did not answer.
        before_line: Called before a line is printed.
    """

    def __init__(self, run: RunDir, job_id: str | None) -> None:
        self._run, self._job_id = run, job_id
        self.jobs: Jobs = {}
        self.before_line: Callable[[], None] = lambda: None
        self._said = ""
        self._restarts: int | None = None

    @property
    def waits(self) -> bool:
        """Whether the job had not started when SLURM was asked."""
        state = (self.jobs or {}).get(self._job_id or "", {}).get("JobState", "")
        return state in ("PENDING", "CONFIGURING")

    def is_over(self) -> bool:
        """Return whether the run will not run again by itself.

        Raises:
            LaunchError: The journal cannot be read, and SLURM does not answer or has no job.
        """
        if self._job_id is None:
            return self._journal_is_over(local=True)
        try:
            with slurm.patience():
                fields = slurm.job_fields(self._job_id)
        except LaunchError as error:
            self.jobs = None
            self._say(str(error), f"{error}; still following")
            return self._journal_is_over(local=False)
        self.jobs = {self._job_id: fields}
        state = fields.get("JobState")
        if state is None or job_states.has_ended(state):
            return True
        self._say_requeued(fields)
        self._say_state(self._job_id, state, fields)
        return False

    def _say_requeued(self, fields: Mapping[str, str]) -> None:
        restarts = fields.get("Restarts", "")
        if not restarts.isdecimal():
            return
        if self._restarts is not None and int(restarts) > self._restarts:
            self._say(f"restart {restarts}", f"job {self._job_id} was requeued ({restarts} so far)")
        self._restarts = int(restarts)

    def _say_state(self, job_id: str, state: str, fields: Mapping[str, str]) -> None:
        """Say the state, if it is another one than the last, or has another reason."""
        described = job_states.described(job_id, fields)
        if ":" in described:
            # Such as REQUEUE_HOLD: it waits for a person.
            self._say(described, f"job {described}")
        elif state == "PENDING":
            reason = pending.reason_of(fields)
            why = pending.in_words(reason, job_id) if reason else "no reason yet"
            start = pending.start_line(pending.start_time(fields), time.time())
            # The estimate changes all the time.
            self._say(f"{state} {why}", f"job {job_id} is PENDING: {why}; start: {start}")
        else:
            nodes = fields.get("NodeList", "")
            on_nodes = f" on {nodes}" if nodes not in ("", "(null)") else ""
            self._say(f"{state}{on_nodes}", f"job {job_id} is {state}{on_nodes}")

    def _journal_is_over(self, local: bool) -> bool:
        try:
            known = history.read(self._run.journal)
        except OSError as error:
            raise LaunchError(f"{self._run.journal}: cannot be read: {error.strerror}") from None
        if local:
            return not known.entries or known.is_at_rest or owner_is_gone(self._run)
        over = known.given_up is not None or known.last_cause in restart_policy.OVER
        return known.is_at_rest and over

    def _say(self, what: str, line: str) -> None:
        """Print a line, unless it says the same as the last one."""
        if what != self._said:
            self.before_line()
            print(line, file=sys.stderr, flush=True)
            self._said = what
