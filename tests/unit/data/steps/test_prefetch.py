"""Steps that another process prepares: the same ones, and a process that ends with this one."""

import atexit
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import cast

import pytest

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.sources import list_sources
from llada_sft.data.steps import prefetch
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.data.steps.prefetch import step_loader
from llada_sft.demo.data import make_tokenizer
from llada_sft.errors import DataError
from tests.unit.data.stepping import IDS, dataset, seen, write

pytestmark = pytest.mark.usefixtures("no_tokenizer")
# Examples of 100 to 1,099 tokens.
LONG_HOOK = """
def process_data(record, tokenizer, max_length):
    lengths = [100 + (37 * number * (1 + record["id"])) % 1000 for number in range(record["parts"])]
    return [
        {"input_ids": [7] * (n - 1), "response_mask": [i > 9 for i in range(n - 1)]}
        for n in lengths
    ]
"""


@pytest.mark.timeout(120)
def test_a_background_process_gives_the_same_steps_and_the_same_error(tmp_path: Path) -> None:
    rows: list[int | dict[str, object]] = [1, 2, 0, 3, 1, 1, {"id": 6}]
    config = write(tmp_path, [rows]).model_copy(update={"shuffle": False})
    # The other process loads a real tokenizer.
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prepared = StepDataset(
        config,
        tmp_path / "tokenizer",
        replace(IDS, mask_token_id=tokenizer.mask_token_id),
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


def test_each_token_goes_through_the_pipe_once(tmp_path: Path) -> None:
    """A packed step of 16,000 tokens, with as many examples that wait as by default."""
    (tmp_path / "train").mkdir()
    for number in range(4):
        lines = [json.dumps({"id": number, "parts": 1 + line % 2}) for line in range(400)]
        (tmp_path / "train" / f"shard_{number}.jsonl").write_text("\n".join(lines))
    (tmp_path / "hook.py").write_text(LONG_HOOK)
    config = DataConfig(
        train=str(tmp_path / "train"),
        hook=str(tmp_path / "hook.py"),
        max_length=4000,
        end=1,
        batching="packed",
        max_tokens=16_000,
    )
    step = next(iter(dataset(config, StepSize(1, 1))))
    (batch,) = step.micro_batches
    arrays = batch.input_ids.nbytes + batch.response_mask.nbytes
    assert batch.input_ids.size > 15_900
    assert sum(len(position.pending) for position in step.positions.values()) == config.pack_buffer
    assert len(ForkingPickler.dumps(step)) < 1.1 * arrays


@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_steps", [0, 1], ids=["before its first step", "in the middle"])
def test_the_background_process_ends_with_this_one(
    monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    """It ignores TERM, which is all that Python tries at exit."""
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(partial(*call)))
    # More than a pipe holds.
    long = "x" * 1_000_000
    unfinished = iter(step_loader(cast(StepDataset, [long] * 9), 2))
    for _ in range(num_steps):
        assert next(unfinished) == long  # type: ignore[comparison-overlap]
    (process,) = multiprocessing.active_children()
    assert process.is_alive()
    for action in at_exit:
        action()
    assert has_ended(process)
    # It was not killed: it ended when it could not send its next step.
    assert process.exitcode == 0


class Killed:
    """A dataset whose process is killed, as for its memory."""

    def __iter__(self) -> Iterator[object]:
        yield "first"
        os.kill(os.getpid(), signal.SIGKILL)


class Leaves:
    """A dataset whose hook ends its process."""

    def __iter__(self) -> Iterator[object]:
        yield "first"
        sys.exit(3)


class OfTwoArgumentsError(Exception):
    """Cannot be made again from its text alone, as pickle does it."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one}: {other}")


class Raises:
    """A dataset with a defect."""

    def __init__(self, error: Exception) -> None:
        self._error = error.args, type(error)

    def __iter__(self) -> Iterator[object]:
        arguments, kind = self._error
        yield "first"
        if kind is OfTwoArgumentsError:
            raise OfTwoArgumentsError("a", "b")
        raise kind(*arguments)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("dataset", "kind", "message"),
    [
        (Killed(), RuntimeError, "the process that prepares steps was killed by SIGKILL;"),
        (Leaves(), RuntimeError, "the process that prepares steps ended by itself with exit code"),
        (Raises(KeyError("id")), KeyError, "'id'"),
        (Raises(OfTwoArgumentsError("", "")), RuntimeError, "OfTwoArgumentsError: a: b"),
    ],
    ids=["killed", "exit", "a defect", "a defect that cannot be sent"],
)
def test_an_end_of_the_background_process_is_raised_where_its_step_is_missed(
    dataset: object, kind: type[Exception], message: str
) -> None:
    steps = iter(step_loader(cast(StepDataset, dataset), 2))
    assert next(steps) == "first"
    with pytest.raises(kind, match=f"^{re.escape(message)}") as caught:
        next(steps)
    if isinstance(dataset, Raises):
        # The traceback of the other process.
        assert "in __iter__" in "".join(traceback.format_exception(caught.value))
    assert multiprocessing.active_children() == []
    assert next(steps, None) is None


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
    assert not before & {signal.SIGTERM, signal.SIGUSR2}
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
    steps = iter(step_loader(cast(StepDataset, dataset), 2))
    (process,) = multiprocessing.active_children()
    for _ in range(num_steps):
        assert next(steps, None) in ("first", None)
    if closed:
        cast(Generator[object, None, None], steps).close()
        assert has_ended(process)
    # atexit calls its handlers in the order of last in, first out.
    for action in reversed(at_exit):
        action()
    assert has_ended(process)
