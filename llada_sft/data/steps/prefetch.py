"""Steps that one other process prepares ahead of the training.

The process runs the hook, which may block for ever. So it gets a deadline when the training is
over, and is then killed.
"""

import atexit
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import Empty, Queue

from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.errors import LladaSftError
from llada_sft.processes import PipedProcess

# How long the process may take to complete its current step when the training is over.
CLOSE_S = 5.0
# How long to wait for a process that was killed.
_KILL_S = 1.0
# SLURM sends them to every process of the step; only the rank may act on them.
_JOB_SIGNALS = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT})


class _BackgroundSteps(Iterator[LocalStep]):
    """The steps of a dataset, prepared ahead by one other process.

    A process must be woken up for what another one sends, read it and unpickle it: a thread does
    that, so that the training only picks up what is there.

    Args:
        dataset: Makes the steps.
        prefetch_steps: How many steps wait here. One more is in the thread's hands, and one in the
            other process's.
    """

    def __init__(self, dataset: Iterable[LocalStep], prefetch_steps: int) -> None:
        self._worker = PipedProcess(partial(_send_steps, dataset), _JOB_SIGNALS)
        self._queue: Queue[LocalStep | BaseException | None] = Queue(prefetch_steps)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        # Before multiprocessing's own handler, which sends TERM and waits for ever.
        atexit.register(self.close)

    def _receive(self) -> None:
        more = True
        while more and not self._closed.is_set():
            item: LocalStep | BaseException | None
            try:
                item = self._worker.receive()
            except EOFError:
                item = RuntimeError(
                    f"the process that prepares steps {self._worker.how_it_ended()};"
                    " does the hook end it, or was there too little memory?"
                )
            except BaseException as error:
                # Whatever it is, it is raised where the step is missed.
                item = error
            self._queue.put(item)
            more = item is not None and not isinstance(item, BaseException)
        # The process ends when it sends its next step.
        self._worker.pipe.close()

    def __next__(self) -> LocalStep:
        if self._closed.is_set():
            raise StopIteration
        item = self._queue.get()
        if item is not None and not isinstance(item, BaseException):
            return item
        self.close()
        raise StopIteration if item is None else item

    def close(self) -> None:
        """End the process after its current step, or kill it after a deadline."""
        self._closed.set()
        deadline = time.monotonic() + CLOSE_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            # The thread may wait for room.
            with suppress(Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)
        self._worker.join(max(0.0, deadline - time.monotonic()))
        self._worker.kill()
        self._worker.join(_KILL_S)
        atexit.unregister(self.close)


def _send_steps(dataset: Iterable[LocalStep], pipe: Connection) -> None:
    """Send all steps, then None; or an error in place of a step."""
    try:
        for step in dataset:
            pipe.send(step)
        pipe.send(None)
    except BrokenPipeError:
        raise
    except LladaSftError as error:
        # One line for the user: a traceback would say nothing more.
        pipe.send(error)
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        error = _portable(error)
        error.add_note(f"In the process that prepares steps:\n{lines}")
        pipe.send(error)


def _portable(error: Exception) -> Exception:
    """Return the error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Prefetched(Iterable[LocalStep]):
    def __init__(self, dataset: StepDataset, prefetch_steps: int) -> None:
        self._dataset, self._prefetch_steps = dataset, prefetch_steps

    def __iter__(self) -> Iterator[LocalStep]:
        return _BackgroundSteps(self._dataset, self._prefetch_steps)


def step_loader(dataset: StepDataset, prefetch_steps: int) -> Iterable[LocalStep]:
    """Prepare steps in one background process, or in this one if `prefetch_steps` is 0."""
    return dataset if prefetch_steps == 0 else _Prefetched(dataset, prefetch_steps)
