"""Steps that one other process prepares ahead of the training."""

import atexit
import signal
from collections.abc import Generator, Iterable, Iterator
from multiprocessing import resource_tracker

from torch.utils.data import DataLoader, IterableDataset

from llada_sft.data.datamodule import LocalStep, StepDataset
from llada_sft.errors import LladaSftError


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
        try:
            steps = _steps_or_error(iter(self._loader))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # The process ignores TERM: at exit, Python would send that and wait for it for ever.
        atexit.register(steps.close)
        return steps


def _steps_or_error(
    items: Iterator[LocalStep | LladaSftError],
) -> Generator[LocalStep, None, None]:
    try:
        for item in items:
            if isinstance(item, LladaSftError):
                raise item
            yield item
    finally:
        # The last reference, also where an exception keeps this frame: the process ends with it.
        del items


def step_loader(dataset: StepDataset, prefetch_steps: int) -> Iterable[LocalStep]:
    """Prepare steps in one background process, or in this one if `prefetch_steps` is 0."""
    return dataset if prefetch_steps == 0 else _BackgroundSteps(dataset, prefetch_steps)
