"""Steps that another process prepares: the same ones, and a process that ends with this one."""

import atexit
import multiprocessing
import signal
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import pytest

from llada_sft.data.sources import list_sources
from llada_sft.data.steps import prefetch
from llada_sft.data.steps.dataset import (
    LocalStep,
    StepDataset,
    StepSize,
)
from llada_sft.data.steps.prefetch import step_loader
from llada_sft.demo.data import make_tokenizer
from llada_sft.errors import DataError
from tests.unit.data.stepping import IDS, dataset, seen, write

pytestmark = pytest.mark.usefixtures("no_tokenizer")


@pytest.mark.timeout(120)
def test_a_background_process_gives_the_same_steps_and_the_same_error(tmp_path: Path) -> None:
    rows: list[int | dict[str, object]] = [1, 2, 0, 3, 1, 1, {"id": 6}]
    config = write(tmp_path, [rows]).model_copy(update={"shuffle": False})
    # The other process loads a real tokenizer.
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    prepared = StepDataset(
        config,
        tmp_path / "tokenizer",
        IDS,
        list_sources(config, epochs=1),
        seed=3,
        size=StepSize(2, 2),
    )
    found = []
    for prefetch_steps in (0, 2):
        steps: list[LocalStep] = []
        with pytest.raises(DataError) as caught:
            steps.extend(step_loader(prepared, prefetch_steps))
        found.append(([(seen(s), s.positions, s.epoch) for s in steps], str(caught.value)))
        # Also while the exception is still held, as it is until a failing rank has exited.
        assert multiprocessing.active_children() == []
    assert found[0] == found[1]
    assert len(found[0][0]) == 2
    assert found[0][1].count("\n") == 0


@pytest.mark.parametrize("num_steps", [0, 1], ids=["before its first step", "in the middle"])
def test_the_background_process_ends_with_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    """It ignores TERM, which is all that Python tries at exit; DataLoader ends it when the last
    reference to its iterator goes."""
    at_exit: list[Callable[[], None]] = []
    ended: list[bool] = []

    class Loader:
        def __init__(self, items: Iterable[object], **_: object) -> None:
            self._items = items

        def __iter__(self) -> Iterator[object]:
            iterator = iter(self._items)
            weakref.finalize(iterator, ended.append, True)
            return iterator

    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(partial(*call)))
    monkeypatch.setattr(prefetch, "DataLoader", Loader)
    unfinished = iter(step_loader(dataset(write(tmp_path, [[1] * 9]), StepSize(1, 1)), 2))
    for _ in range(num_steps):
        next(unfinished)
    assert ended == []
    for action in at_exit:
        action()
    assert ended == [True]


class SignalsOfTheProcess:
    """A dataset whose only item says what its process does with the job's signals."""

    def __iter__(self) -> Iterator[object]:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        for number in (signal.SIGTERM, signal.SIGUSR2):
            ignored = signal.getsignal(number) == signal.SIG_IGN
            # Blocked already by whoever started it: it needs seconds until it can ignore them.
            yield [number.name, ignored, number in blocked]


def test_the_background_process_is_deaf_to_the_jobs_signals_from_its_first_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    steps = iter(step_loader(cast(StepDataset, SignalsOfTheProcess()), 2))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert list(steps) == [["SIGTERM", True, True], ["SIGUSR2", True, True]]


class Blocks:
    """A dataset whose hook blocks for ever in its second step, in other ways than a signal ends."""

    def __iter__(self) -> Iterator[object]:
        yield "first"
        time.sleep(1000)


class BlocksAtItsEnd:
    """A dataset that leaves a thread behind, which its process waits for when it exits."""

    def __iter__(self) -> Iterator[object]:
        yield "first"
        threading.Thread(target=time.sleep, args=(1000,)).start()


def has_ended(process: BaseProcess) -> bool:
    """Whether a process is gone; `is_alive` may say yes while another thread has just seen it."""
    return connection.wait([process.sentinel], timeout=10) == [process.sentinel]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("dataset", "num_steps", "closed"),
    [
        pytest.param(Blocks(), 0, False, id="not asked"),
        pytest.param(Blocks(), 1, True, id="blocks"),
        pytest.param(BlocksAtItsEnd(), 1, False, id="one is left"),
        pytest.param(BlocksAtItsEnd(), 2, False, id="blocks at its end"),
    ],
)
def test_a_hook_that_blocks_does_not_keep_the_rank(
    dataset: object, num_steps: int, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(partial(*call)))
    monkeypatch.setattr(prefetch, "CLOSE_S", 0.2)
    # How long DataLoader itself waits before it sends TERM.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    steps = iter(step_loader(cast(StepDataset, dataset), 2))
    for _ in range(num_steps):
        assert next(steps, None) in ("first", None)
    (process,) = multiprocessing.active_children()
    handler = signal.getsignal(signal.SIGCHLD)
    if closed:
        cast(Generator[object, None, None], steps).close()
        assert has_ended(process)
    # atexit calls its handlers in the order of last in, first out.
    for action in reversed(at_exit):
        action()
    assert has_ended(process)
    assert signal.getsignal(signal.SIGCHLD) is handler
