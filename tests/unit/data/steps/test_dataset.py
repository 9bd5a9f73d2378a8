"""A rank's steps: their size, the positions that travel with them, and going on from each."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.rows.position import FilePosition
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import LocalStep, StepSize
from tests.unit.data.batches import examples_of
from tests.unit.data.stepping import IDS, all_seen, dataset, seen, write

pytestmark = pytest.mark.usefixtures("no_tokenizer")


def test_micro_batches_are_filled_in_order(tmp_path: Path) -> None:
    config = write(tmp_path, [[1] * 8]).model_copy(update={"shuffle": False})
    first, last, end = dataset(config, StepSize(2, 3))
    batches = [[int(e.input_ids[0]) for e in examples_of(batch)] for batch in first.micro_batches]
    assert batches == [[0, 1], [2, 3], [4, 5]]
    batches = [[int(e.input_ids[0]) for e in examples_of(batch)] for batch in last.micro_batches]
    assert batches == [[6, 7], [], []]
    assert (first.num_examples, last.num_examples, end.num_examples) == (6, 2, 0)
    # A prompt token, a response token and EOS each; empty micro-batches count for nothing.
    assert (first.num_response_tokens, last.num_response_tokens) == (12, 4)
    assert (first.num_tokens, last.num_tokens, end.num_tokens) == (18, 6, 0)
    assert [step.end_of_epoch for step in (first, last, end)] == [False, False, True]
    assert len(end.micro_batches) == 3


def test_positions_are_of_what_the_step_holds(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 3, 0, 1, 0]]).model_copy(update={"shuffle": False})
    steps = list(dataset(config, StepSize(2, 1)))
    assert [seen(step) for step in steps] == [[(0, 0), (1, 0)], [(1, 1), (1, 2)], [(3, 0)], []]
    assert [step.positions["0.jsonl"] for step in steps] == [
        FilePosition(1, 1),
        FilePosition(2, 0),
        FilePosition(5, 0),
        FilePosition(5, 0),
    ]


def test_a_step_does_not_mix_epochs(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 1, 1]])
    steps = list(dataset(config, StepSize(2, 1), epochs=2))
    assert [(step.epoch, step.num_examples, step.end_of_epoch) for step in steps] == [
        (0, 2, False),
        (0, 1, False),
        (0, 0, True),
        (1, 2, False),
        (1, 1, False),
        (1, 0, True),
    ]
    assert sorted(all_seen(steps[:3])) == sorted(all_seen(steps[3:]))
    assert steps[3].positions["0.jsonl"] == FilePosition(2, 0, epoch=1)


def test_no_rows_at_all_is_an_end_of_epoch(tmp_path: Path) -> None:
    (step,) = dataset(write(tmp_path, [[]]), StepSize(2, 2))
    assert step.end_of_epoch
    assert len(step.micro_batches) == 2


@given(
    files=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=3),
    size=st.builds(StepSize, st.integers(1, 3), st.integers(1, 2)),
    long=st.sets(st.integers(0, 2), max_size=2),
    shuffle=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_going_on_from_every_step_gives_exactly_the_rest(
    files: list[list[int]], size: StepSize, long: set[int], shuffle: bool
) -> None:
    rows: list[list[int | dict[str, object]]] = [
        [
            {"id": 100 * file + line, "parts": parts, "long": sorted(long)}
            for line, parts in enumerate(sizes)
        ]
        for file, sizes in enumerate(files)
    ]
    # Examples that are too long are left out, and must not shift what follows.
    expected = {
        (100 * file + line, part)
        for file, sizes in enumerate(files)
        for line, parts in enumerate(sizes)
        for part in range(parts)
        if part not in long
    }
    with tempfile.TemporaryDirectory() as folder:
        update = {"shuffle": shuffle, "on_too_long": "skip"}
        config = write(Path(folder), rows).model_copy(update=update)
        steps = list(dataset(config, size, epochs=2))
        for epoch in (0, 1):
            found = all_seen([step for step in steps if step.epoch == epoch])
            assert len(found) == len(expected)
            assert set(found) == expected
        for number, step in enumerate(steps):
            resumed = dataset(config, size, 2, step.epoch, step.positions)
            rest = [one for one in resumed if one.micro_batches[0].keys]
            wanted = [one for one in steps[number + 1 :] if one.micro_batches[0].keys]
            assert [(one.epoch, seen(one), one.positions) for one in rest] == [
                (one.epoch, seen(one), one.positions) for one in wanted
            ]


def test_going_on_in_the_middle_of_a_row(tmp_path: Path) -> None:
    config = write(tmp_path, [[5]])
    position = {"0.jsonl": FilePosition(0, 3)}
    steps = list(dataset(config, StepSize(9, 1), positions=position))
    assert all_seen(steps) == [(0, 3), (0, 4)]
    # The position given is not changed: it is the checkpoint's.
    assert position == {"0.jsonl": FilePosition(0, 3)}


RANDOM_HOOK = """
import random

def process_data(record, tokenizer, max_length):
    ids = [record["id"], len(record["messages"]), random.randrange(1000)]
    return {"input_ids": ids, "response_mask": [True] * 3}
"""


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_what_is_drawn_is_drawn_again_on_going_on_and_anew_each_epoch(
    tmp_path: Path, batching: str
) -> None:
    turns = [{"role": role, "content": "a"} for _ in range(9) for role in ("user", "assistant")]
    rows: list[int | dict[str, object]] = [{"id": n, "messages": turns} for n in range(12)]
    config = write(tmp_path, [rows]).model_copy(update={"batching": batching})
    (tmp_path / "hook.py").write_text(RANDOM_HOOK)
    if batching == "packed":
        config = config.model_copy(update={"max_tokens": 10, "pack_buffer": 5})

    def drawn(steps: Iterable[LocalStep]) -> list[tuple[int, ...]]:
        return [
            (step.epoch, *example.input_ids.tolist())
            for step in steps
            for batch in step.micro_batches
            for example in examples_of(batch)
        ]

    size = StepSize(2 if batching == "padded" else 1, 1)
    steps = list(dataset(config, size, epochs=3))
    for number, step in enumerate(steps):
        resumed = dataset(config, size, 3, step.epoch, step.positions)
        assert drawn(resumed) == drawn(steps[number + 1 :])
    by_epoch = [{one[1:] for one in drawn(steps) if one[0] == epoch} for epoch in range(3)]
    assert [len(one) for one in by_epoch] == [12, 12, 12]
    assert not by_epoch[0] & by_epoch[1]
    # Every answer of the nine is drawn somewhere, and epochs draw others.
    assert {messages for _, _, messages, _, _ in drawn(steps)} == set(range(2, 20, 2))


def test_a_file_that_was_added_is_read_from_the_next_epoch_on(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 1], [1, 1, 1]])
    positions = {"0.jsonl": FilePosition(1, 0)}
    steps = list(dataset(config, StepSize(9, 1), epochs=2, positions=positions))
    assert [len(seen(step)) for step in steps] == [1, 0, 5, 0]
    # What is saved now knows the new file, too.
    done = {"0.jsonl": FilePosition(2, 0), "1.jsonl": FilePosition(3, 0)}
    assert steps[0].positions == done


def test_a_rank_with_new_files_alone_waits_for_the_next_epoch(tmp_path: Path) -> None:
    config = write(tmp_path, [[1], [1]])
    steps = list(dataset(config, StepSize(9, 1), epochs=2, positions={}))
    assert [len(seen(step)) for step in steps] == [0, 2, 0]


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_file_that_begins_its_epoch_anew(tmp_path: Path, batching: str) -> None:
    config = write(tmp_path, [[1] * 9, [2] * 9, [1] * 9])
    if batching == "packed":
        update = {"batching": batching, "max_tokens": 50, "pack_buffer": 3}
        config = config.model_copy(update=update)
    first = next(iter(dataset(config, StepSize(6, 1), positions=None)))
    done = set(seen(first))
    # Of another content, and with fewer rows than were done of it.
    (tmp_path / "train" / "1.jsonl").write_text('{"id": 777, "parts": 1}\n')
    resumed = dataset(config, StepSize(6, 1), epochs=2, positions=first.positions)
    resumed.restart_files(["1.jsonl"])
    steps = list(resumed)
    others = {(100 * file + line, 0) for file in (0, 2) for line in range(9)}
    rest = all_seen([step for step in steps if step.epoch == 0])
    assert sorted(rest) == sorted((others - done) | {(777, 0)})
    whole = all_seen([step for step in steps if step.epoch == 1])
    assert sorted(whole) == sorted(others | {(777, 0)})


def test_a_rank_speaks_of_its_own_files_alone(tmp_path: Path) -> None:
    """The state of a checkpoint is of all ranks; a rank that kept the others' old positions would
    overwrite their new ones at the next checkpoint."""
    config = write(tmp_path, [[1, 1, 1], [1, 1, 1]])
    checkpoint = {"0.jsonl": FilePosition(1, 0), "1.jsonl": FilePosition(2, 0)}
    own = [Path(config.train) / "1.jsonl"]
    steps = list(dataset(config, StepSize(1, 1), positions=checkpoint, files=own))
    assert [step.positions for step in steps] == [{"1.jsonl": FilePosition(3, 0)}] * 2


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_step_carries_the_positions_that_have_changed(tmp_path: Path, batching: str) -> None:
    """However many files there are: of 200, a step of two rows names few."""
    packed = {"batching": "packed", "max_tokens": 50, "pack_buffer": 4}
    config = write(tmp_path, [[{"id": 3, "parts": 1}] * 2] * 200).model_copy(
        update=packed if batching == "packed" else {}
    )
    (source,) = list_sources(config, 2)
    steps = list(StepDataset(config, Path("none"), IDS, [source], 3, StepSize(2, 1)))
    whole = list(dataset(config, StepSize(2, 1), epochs=2))
    # The first step of an epoch has all files; the others have their own, and those that wait.
    assert len(steps) > 40
    assert len(steps[0].positions) == 200
    known: dict[str, FilePosition] = {}
    for number, (step, same) in enumerate(zip(steps, whole, strict=True)):
        starts = number == 0 or steps[number - 1].end_of_epoch
        assert starts or len(step.positions) <= 60
        known = known | step.positions
        assert known == same.positions
        assert step.rows_done == sum(position.row for position in known.values())
