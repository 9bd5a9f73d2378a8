"""A step costs what it reads: neither its size nor its work grows with the number of files.

Without a clock: what steps carry is counted, and the instructions of Python that make them.
"""

import json
import pickle
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llada_sft.config.sections.data import DataConfig, SourceConfig
from llada_sft.data.rows.position import Positions
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.training.checkpoint.data_state import DataState
from tests.unit.data.stepping import HOOK, IDS

pytestmark = pytest.mark.usefixtures("no_tokenizer")

PER_STEP, BUFFER = 4, 6
# Both are more than a rank keeps open.
FEW, MANY = 200, 1600
KINDS = ("padded", "packed", "mixed", "mixed and packed")


def steps_of(
    folder: Path, kind: str, num_files: int, positions: Positions | None = None
) -> StepDataset:
    """Return the steps of files of one row; if they are mixed, of two sources with half of them."""
    names = ("a", "b") if "mixed" in kind else ("a",)
    if not folder.exists():
        folder.mkdir()
        (folder / "hook.py").write_text(HOOK)
        for name in names:
            (folder / name).mkdir()
            for number in range(num_files // len(names)):
                row = json.dumps({"id": number % 900, "parts": 1})
                (folder / name / f"{number:05}.jsonl").write_text(row + "\n")
    sources = {name: SourceConfig(path=str(folder / name), weight=1) for name in names}
    more: dict[str, Any] = {}
    if "packed" in kind:
        # An example has three tokens: two share a micro-batch.
        more = {"batching": "packed", "max_tokens": 6, "pack_buffer": BUFFER}
    config = DataConfig(
        train=sources if "mixed" in kind else str(folder / "a"),
        hook=str(folder / "hook.py"),
        max_length=6,
        end=1,
        **more,
    )
    size = StepSize(1, 2) if "packed" in kind else StepSize(2, 2)
    return StepDataset(
        config, Path("none"), IDS, list_sources(config, 1), 3, size, positions=positions
    )


def instructions(steps: Iterator[LocalStep], num_steps: int) -> int:
    """Count the instructions of the package that are run for some steps."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert len(list(islice(steps, num_steps))) == num_steps
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_carries_the_files_that_it_moved(tmp_path: Path, kind: str) -> None:
    first, *steps = steps_of(tmp_path / "data", kind, FEW)
    assert len(first.positions) == FEW
    # Of an example that waits, the file is carried when it is read, as long as its place among
    # those that wait may change, and when it is trained.
    most = PER_STEP + 2 * BUFFER if "packed" in kind else 2 * PER_STEP
    assert max(len(step.positions) for step in steps) <= most
    assert len(steps) == FEW // PER_STEP
    known = dict(first.positions)
    for step in steps:
        known |= step.positions
    assert {(position.row, position.pending) for position in known.values()} == {(1, ())}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_many_files_is_as_small_as_one_of_few(tmp_path: Path, kind: str) -> None:
    few, many = (
        [len(pickle.dumps(step)) for step in list(steps_of(tmp_path / str(num), kind, num))[1:]]
        for num in (FEW, MANY)
    )
    assert max(many) <= 1.1 * max(few)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_many_files_is_as_little_work_as_one_of_few(tmp_path: Path, kind: str) -> None:
    work = []
    for num in (FEW, MANY):
        steps = iter(steps_of(tmp_path / str(num), kind, num))
        # What a run does once, it does for the first.
        list(islice(steps, 2))
        work.append(instructions(steps, 20))
    # To draw a file takes log2(files) steps.
    assert work[1] <= 1.3 * work[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_steps_carry_adds_up_to_a_checkpoint(tmp_path: Path, kind: str) -> None:
    """A run that resumes from the sum of them makes the steps that are left."""

    def keys(steps: list[LocalStep]) -> list[Any]:
        return [batch.keys for step in steps for batch in step.micro_batches if batch.keys]

    whole = list(steps_of(tmp_path / "data", kind, FEW))
    known: Positions = {}
    for number, step in enumerate(whole):
        known |= step.positions
        if number in (0, 7, len(whole) - 2):
            saved = DataState(0, known, dict.fromkeys(known, "")).to_json()
            positions = DataState.from_json(json.loads(json.dumps(saved))).positions
            rest = list(steps_of(tmp_path / "data", kind, FEW, positions))
            assert keys(rest) == keys(whole[number + 1 :])
            assert [step.rows_done for step in rest] == [
                step.rows_done for step in whole[number + 1 :]
            ]
