"""Steps that one other process prepares ahead of the training.

The process runs the hook, which may block for ever. It ignores TERM, and Python and torch only send
TERM before they wait for it without a limit. So it gets a deadline, and is then killed.
"""

import atexit
import inspect
import multiprocessing
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from queue import Empty, Queue

from torch.utils.data import DataLoader, IterableDataset

from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.errors import LladaSftError

# How long the process may take to complete its current step when the training is over.
CLOSE_S = 5.0


def _ignore_job_signals(_worker: int) -> None:
    # SLURM sends the job's signals to every process of the step; only the rank may act on them.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _ErrorsAsItems(IterableDataset[LocalStep | LladaSftError]):
    """A dataset whose last item may be its error: DataLoader would add a traceback to the line."""

    def __init__(self, dataset: StepDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[LocalStep | LladaSftError]:
        try:
            yield from self._dataset
        except LladaSftError as error:
            yield error


class _BackgroundSteps(Iterable[LocalStep]):
    """The steps of a dataset, prepared ahead by one other process."""

    def __init__(self, dataset: StepDataset, prefetch_steps: int) -> None:
        self._loader = DataLoader(
            _ErrorsAsItems(dataset),
            batch_size=None,
            num_workers=1,
            prefetch_factor=prefetch_steps,
            # fork would copy the threads' locks of a process that runs gloo and CUDA
            multiprocessing_context="spawn",
            worker_init_fn=_ignore_job_signals,
        )

    def __iter__(self) -> Iterator[LocalStep]:
        # Unblocks TERM when it starts.
        resource_tracker.ensure_running()
        # The process inherits what is blocked: it is safe until it ignores TERM, seconds later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
        others = multiprocessing.active_children()
        try:
            items = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        started = [one for one in multiprocessing.active_children() if one not in others]
        steps = _steps_or_error([items], started)
        # Before multiprocessing's own handler, which sends TERM and waits for ever.
        atexit.register(_end, steps, started)
        return steps


class _Received:
    """Items of a background process, the next one received while the last one is worked on.

    A process must be woken up for what another one sends, read it and unpickle it: a thread does
    that, so that a step only picks up what is there.

    Args:
        items: A list of one iterator, which is taken out: the process ends with the last reference,
            and that is the thread's.
        processes: The processes that prepare them.
    """

    def __init__(
        self, items: list[Iterator[LocalStep | LladaSftError]], processes: Sequence[BaseProcess]
    ) -> None:
        self._processes = processes
        self._queue: Queue[LocalStep | BaseException | None] = Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._receive, args=(items,), daemon=True)
        self._thread.start()

    def _receive(self, only: list[Iterator[LocalStep | LladaSftError]]) -> None:
        items = only.pop()
        try:
            more = True
            while more and not self._stop.is_set():
                item = next(items, None)
                self._queue.put(item)
                more = item is not None
        except BaseException as error:
            # Whatever it is, it is raised where the item is missed.
            self._queue.put(error)
        finally:
            # The error keeps this frame.
            del items

    def __iter__(self) -> Iterator[LocalStep]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """End the process after its current step, or kill it after a deadline."""
        self._stop.set()
        deadline = time.monotonic() + CLOSE_S
        while self._thread.is_alive():
            if time.monotonic() > deadline:
                # The thread notices this within seconds; nobody waits for it.
                _kill(self._processes)
                return
            # The thread may wait for room.
            with suppress(Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)


def _steps_or_error(
    items: list[Iterator[LocalStep | LladaSftError]], processes: Sequence[BaseProcess]
) -> Generator[LocalStep, None, None]:
    received = _Received(items, processes)
    try:
        yield from received
    finally:
        received.close()


def _end(steps: Generator[LocalStep, None, None], processes: Sequence[BaseProcess]) -> None:
    """End all processes, whatever they are doing."""
    if inspect.getgeneratorstate(steps) == inspect.GEN_CREATED:
        # Nobody has asked for a step.
        _kill(processes)
    steps.close()
    # It may also hang at its own end.
    _kill(processes)


def _kill(processes: Sequence[BaseProcess]) -> None:
    in_main = threading.current_thread() is threading.main_thread()
    # DataLoader has a handler that raises an error when its process is killed.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    for process in processes:
        # A process that hangs in a file system does not die even of this: wait for a moment only.
        process.kill()
        process.join(1.0)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


def step_loader(dataset: StepDataset, prefetch_steps: int) -> Iterable[LocalStep]:
    """Prepare steps in one background process, or in this one if `prefetch_steps` is 0."""
    return dataset if prefetch_steps == 0 else _BackgroundSteps(dataset, prefetch_steps)
