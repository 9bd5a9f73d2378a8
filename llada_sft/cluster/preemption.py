"""Being told to stop: a signal sets a flag, and after the save rank 0 requeues the job or not.

    USR2  sent ahead of the time limit (`--signal=USR2@lead`), and by preemption where the cluster
          has `preempt_send_user_signal`: save and requeue
    TERM  sent by scancel and by preemption elsewhere, alike: `scontrol show job` knows the
          PreemptTime of a preempted job, and only that one is requeued

No handler saves anything: all ranks agree at a step's boundary (`training/consensus.py`). On SLURM
22.05 a job that exits inside its grace time is *not* requeued, whatever its manual says; so we call
`scontrol requeue` ourselves, once, when everything is on disk. TERM and CONT then reach all ranks:
a consequence, not a new event.
"""

import os
import signal
import threading
import time
from types import FrameType

from llada_sft.cluster import slurm
from llada_sft.errors import LaunchError


class StopRequest:
    """Whether this process has been told to stop, and by which signals."""

    def __init__(self) -> None:
        self.signals: set[signal.Signals] = set()

    @property
    def requested(self) -> bool:
        return bool(self.signals)

    def install(self) -> None:
        """Take the signals over from submitit; to be called first thing, in the main thread.

        USR2 reaches every process of the step, and would end a data worker. Children inherit what
        is blocked, also through exec, but no handler: so it is blocked here, and a thread waits for
        it. The handler is for threads that started before us (numpy's) and do not block it.
        """
        signal.signal(signal.SIGUSR2, self._note)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=self._await_usr2, name="await-usr2", daemon=True).start()
        self.claim_term()
        os.register_at_fork(after_in_child=_let_term_end_the_child)

    def wait(self, timeout_s: float) -> None:
        """Wait for a signal that has reached another rank before it reaches this one."""
        deadline = time.monotonic() + timeout_s
        while not self.requested and time.monotonic() < deadline:
            time.sleep(0.05)

    def claim_term(self) -> None:
        """Take TERM back from Lightning, which puts its own handler in front when fit() begins.

        That one runs a broadcast *inside* the handler: a deadlock when ranks get TERM at different
        points of a step.
        """
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) != self._note:
            signal.signal(signal.SIGTERM, self._note)

    def _await_usr2(self) -> None:
        while True:
            self._note(signal.sigwait({signal.SIGUSR2}))

    def _note(self, number: int, frame: FrameType | None = None) -> None:
        self.signals.add(signal.Signals(number))


def _let_term_end_the_child() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def after_stop(stop: StopRequest, job_id: str | None) -> str:
    """Requeue the job if SLURM took its nodes, not if the user did; rank 0 only, after the save.

    Returns:
        The cause, in the journal's words.
    """
    stop.wait(timeout_s=10)
    names = " and ".join(sorted(one.name for one in stop.signals)) or "another rank"
    if job_id is None:
        return f"stopped by {names}"
    try:
        if signal.SIGUSR2 not in stop.signals and not _is_preempted(job_id):
            return "cancelled"
        slurm.requeue(job_id)
    except LaunchError as error:
        return f"stopped by {names}, not requeued: {error}"
    return f"requeued after {names}"


def _is_preempted(job_id: str) -> bool:
    return slurm.job_fields(job_id).get("PreemptTime", "None") not in ("None", "")
