"""A signal sets a flag, and nothing else: `StopRequest`, and who handles the job's signals.

    USR2  sent ahead of the time limit (`--signal=USR2@lead`), and by preemption if the cluster sets
          `preempt_send_user_signal`
    TERM  sent by scancel, by a requeue, and by preemption on other clusters

After the save, rank 0 finds out which of these it was, and what follows from it (`stopping.py`).
"""

import os
import signal
import threading
from types import FrameType

from llada_sft.errors import LaunchError

_WATCHED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class StopRequest:
    """Whether this process was asked to stop, and by which signals."""

    def __init__(self) -> None:
        self.signals: set[signal.Signals] = set()

    @property
    def requested(self) -> bool:
        return bool(self.signals)

    def names(self) -> list[str]:
        """Return the names of the signals that were received."""
        return sorted(received.name for received in self.signals.copy())

    def install(self) -> None:
        """Handle the job's signals; must be called in the main thread, before anything else.

        USR2 reaches every process of the step, and would end a data worker. Child processes inherit
        blocked signals, also through exec, but not handlers: so USR2 is blocked here, and a thread
        waits for it. The handler is for threads that were started before and do not block USR2
        (numpy's).
        """
        signal.signal(signal.SIGUSR2, self._note)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=self._await_usr2, name="await-usr2", daemon=True).start()
        signal.signal(signal.SIGTERM, self._note)
        # Ctrl-C reaches the ranks that a person has started with srun or torchrun.
        signal.signal(signal.SIGINT, self._note)
        os.register_at_fork(after_in_child=_let_term_end_the_child)

    def claim(self) -> str:
        """Take TERM back from Lightning, and check that nobody else handles the job's signals.

        When fit() starts, Lightning puts its own handler of TERM first. It runs a broadcast
        *inside* the handler: a deadlock if ranks receive TERM at different points of a step.

        Returns:
            Which module handles which signal, in one line.

        Raises:
            LaunchError: A handler is neither the default, nor Lightning's for TERM, nor ours.
        """
        if _owner(signal.SIGTERM).split(".")[0] in ("lightning", "lightning_fabric"):
            signal.signal(signal.SIGTERM, self._note)
        owners = {number.name: _owner(number) for number in _WATCHED}
        problems = [
            f"signals: {name}: handled by {owner}, and the job needs it to save and stop in time:"
            f" remove that handler from the hook, or from the library that sets it"
            for name, owner in owners.items()
            if owner not in ("default", "ignored", __name__)
        ]
        if problems:
            raise LaunchError("\n".join(problems))
        return "signals: " + ", ".join(f"{name} {owner}" for name, owner in owners.items())

    def _await_usr2(self) -> None:
        while True:
            self._note(signal.sigwait({signal.SIGUSR2}))

    def _note(self, number: int, frame: FrameType | None = None) -> None:
        self.signals.add(signal.Signals(number))


def _owner(number: signal.Signals) -> str:
    """Return the name of the module that has a signal's handler."""
    handler = signal.getsignal(number)
    if handler in (signal.SIG_DFL, signal.SIG_IGN):
        return "default" if handler == signal.SIG_DFL else "ignored"
    if handler is None:
        return "C code"
    return str(getattr(handler, "__module__", type(handler).__module__))


def _let_term_end_the_child() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
