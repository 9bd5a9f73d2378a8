"""A rank's steps: their size, the positions that travel with them, and going on from each."""

import atexit
import json
import multiprocessing
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.config.schema import DataConfig
from llada_sft.data import background, datamodule, file_reader
from llada_sft.data.background import step_loader
from llada_sft.data.counts import RowCounts
from llada_sft.data.datamodule import (
    LocalStep,
    Positions,
    StepDataset,
    StepSize,
    TokenIds,
    build_encoder,
)
from llada_sft.data.sources import list_sources, list_validation
from llada_sft.data.stream import FilePosition
from llada_sft.data.validation import validation_batches
from llada_sft.demo.data import make_tokenizer
from llada_sft.errors import DataError

IDS = TokenIds(vocab_size=1000, eos_token_id=999, mask_token_id=5)

# A record is {"id": n, "parts": k}: k examples; k = 0 leaves the row out, and an example whose
# number is in "long" is longer than max_length.
HOOK = """
def process_data(record, tokenizer, max_length):
    def one(part):
        response = [part] * (1 + 100 * (part in record.get("long", [])))
        return {
            "input_ids": [record["id"], *response],
            "response_mask": [False] + [True] * len(response),
        }
    return [one(part) for part in range(record["parts"])]
"""

Seen = list[tuple[int, int]]


@pytest.fixture(scope="module", autouse=True)
def no_tokenizer() -> Iterator[None]:
    """The hook above needs none, and loading one takes most of these tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodule, "load_tokenizer", lambda *_: None)
        yield


def write(folder: Path, files: Sequence[Sequence[int | dict[str, object]]]) -> DataConfig:
    """Write shards; an item of a file is a record, or how many examples a row makes."""
    (folder / "hook.py").write_text(HOOK)
    (folder / "train").mkdir()
    for number, rows in enumerate(files):
        records = [
            row if isinstance(row, dict) else {"id": 100 * number + line, "parts": row}
            for line, row in enumerate(rows)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "train" / f"{number}.jsonl").write_text(text)
    return DataConfig(
        train=str(folder / "train"), hook=str(folder / "hook.py"), max_length=50, eos_tail=1
    )


def dataset(
    config: DataConfig,
    size: StepSize,
    epochs: int = 1,
    epoch: int = 0,
    positions: Positions | None = None,
    files: list[Path] | None = None,
    quarantine: Path | None = None,
) -> StepDataset:
    (source,) = list_sources(config, epochs)
    if files is not None:
        source = replace(source, shards=tuple(one for one in source.shards if one.shard in files))
    return StepDataset(
        config,
        Path("no tokenizer"),
        IDS,
        [source],
        seed=3,
        size=size,
        epoch=epoch,
        positions=positions,
        quarantine=quarantine,
    )


def seen(step: LocalStep) -> Seen:
    """(id of the record, number of the example) for each example of a step."""
    return [
        (int(example.input_ids[0]), example.part)
        for batch in step.micro_batches
        for example in batch.examples
    ]


def all_seen(steps: Sequence[LocalStep]) -> Seen:
    return [one for step in steps for one in seen(step)]


def test_micro_batches_are_filled_in_order(tmp_path: Path) -> None:
    config = write(tmp_path, [[1] * 8]).model_copy(update={"shuffle": False})
    first, last, end = dataset(config, StepSize(2, 3))
    batches = [[int(e.input_ids[0]) for e in batch.examples] for batch in first.micro_batches]
    assert batches == [[0, 1], [2, 3], [4, 5]]
    batches = [[int(e.input_ids[0]) for e in batch.examples] for batch in last.micro_batches]
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
            rest = [one for one in resumed if one.micro_batches[0].examples]
            wanted = [one for one in steps[number + 1 :] if one.micro_batches[0].examples]
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
            for example in batch.examples
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
    resumed.begin_anew(["1.jsonl"])
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


def test_a_bad_row_stops_the_steps_with_its_place(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, {"id": 1}]]).model_copy(update={"shuffle": False})
    steps = iter(dataset(config, StepSize(1, 1)))
    assert seen(next(steps)) == [(0, 0)]
    with pytest.raises(DataError) as caught:
        next(steps)
    place = f"{config.train}/0.jsonl:2 (byte 22)"
    assert str(caught.value) == f"{place}: hook raised KeyError: 'parts' (hook.py line 9)"


def counted(steps: Iterable[LocalStep]) -> RowCounts:
    return sum((step.rows for step in steps), start=RowCounts())


def quarantined(path: Path) -> list[tuple[str, int, str]]:
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return [(Path(entry["file"]).name, entry["line"], entry["reason"]) for entry in entries]


def test_counts_travel_with_the_step_that_follows(tmp_path: Path) -> None:
    rows = [1, {"id": 1}, 0, 2, {"id": 4, "parts": 1, "long": [0]}, 1, {"id": 6}, 0]
    config = write(tmp_path, [rows]).model_copy(
        update={"shuffle": False, "max_bad_fraction": 1.0, "on_too_long": "skip"}
    )
    steps = list(dataset(config, StepSize(2, 1)))
    assert [seen(step) for step in steps] == [[(0, 0), (3, 0)], [(3, 1), (5, 0)], []]
    assert [step.rows for step in steps] == [
        RowCounts(rows=4, bad={"hook_raised": 1}, left_out=1),
        RowCounts(rows=2, skipped=1),
        RowCounts(rows=2, bad={"hook_raised": 1}, left_out=1),
    ]
    assert [(step.rows_done, step.epoch_rows) for step in steps] == [(3, 8), (6, 8), (8, 8)]
    # Padding and empty micro-batches are run, too.
    assert [(step.num_tokens, step.num_positions) for step in steps] == [(6, 6), (6, 6), (0, 1)]


BAD_LINES = {
    b"{": "not_json",
    b'{"id": "\\ud800"}': "not_json",
    b"\xff": "not_utf8",
    b"{}\0": "nul_byte",
    b"[" + b" " * 300 + b"]": "line_too_long",
    b"[]": "hook_raised",
    b'{"id": "a", "parts": 1}': "hook_returned",
    b'{"id": -1, "parts": 2}': "hook_returned",
}


@given(
    files=st.lists(
        st.lists(st.one_of(st.integers(0, 2), st.sampled_from(sorted(BAD_LINES))), max_size=6),
        min_size=1,
        max_size=3,
    ),
    size=st.builds(StepSize, st.integers(1, 3), st.integers(1, 2)),
    shuffle=st.booleans(),
    ending=st.sampled_from([b"\n", b"\r\n", b"\n \n"]),
    final=st.booleans(),
    mark=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_good_rows_are_delivered_and_bad_ones_quarantined_exactly_once(
    files: list[list[int | bytes]],
    size: StepSize,
    shuffle: bool,
    ending: bytes,
    final: bool,
    mark: bool,
) -> None:
    every = 1 + ending.count(b"\n \n")
    expected = {
        (100 * file + number, part)
        for file, rows in enumerate(files)
        for number, row in enumerate(rows)
        if isinstance(row, int)
        for part in range(row)
    }
    bad = sorted(
        (f"{file}.jsonl", 1 + every * number, BAD_LINES[row])
        for file, rows in enumerate(files)
        for number, row in enumerate(rows)
        if isinstance(row, bytes)
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_reader, "MAX_LINE_BYTES", 200)
        config = write(Path(folder), [[] for _ in files]).model_copy(
            update={"shuffle": shuffle, "max_bad_fraction": 1.0}
        )
        for file, rows in enumerate(files):
            lines = [
                json.dumps({"id": 100 * file + number, "parts": row}).encode()
                if isinstance(row, int)
                else row
                for number, row in enumerate(rows)
            ]
            content = ending.join(lines) + ending * (final and bool(lines))
            # A mark before nothing would be a row of its own.
            start = b"\xef\xbb\xbf" * (mark and bool(lines))
            (Path(config.train) / f"{file}.jsonl").write_bytes(start + content)
        path = Path(folder, "quarantine", "rank_0.jsonl")
        steps = list(dataset(config, size, epochs=2, quarantine=path))
        assert sorted(quarantined(path)) == bad
        for epoch in (0, 1):
            own = [step for step in steps if step.epoch == epoch]
            assert len(all_seen(own)) == len(expected)
            assert set(all_seen(own)) == expected
            total = counted(own)
            assert total.rows == sum(map(len, files))
            assert sorted(Counter(total.bad).elements()) == sorted(reason for *_, reason in bad)
            assert total.left_out == sum(rows.count(0) for rows in files)
        # Going on from any step writes nothing twice, and counts the rest.
        for number, step in enumerate(steps):
            resumed = dataset(config, size, 2, step.epoch, step.positions, quarantine=path)
            rest = counted(steps[number + 1 :])
            assert counted(resumed) == rest
        assert sorted(quarantined(path)) == bad


def test_too_many_bad_rows_end_the_run(tmp_path: Path) -> None:
    rows: list[int | dict[str, object]] = [{"id": 0} if n % 30 == 0 else 1 for n in range(150)]
    config = write(tmp_path, [rows]).model_copy(update={"shuffle": False})

    def steps_until_stopped(limit: float, **resume: Any) -> tuple[int, str]:
        found, path = 0, tmp_path / "quarantine" / "rank_0.jsonl"
        limited = config.model_copy(update={"max_bad_fraction": limit})
        with pytest.raises(DataError) as caught:
            for step in dataset(limited, StepSize(1, 1), quarantine=path, **resume):
                found += step.num_examples
        return found, str(caught.value)

    # Rows 0, 30, 60 and 90 are bad: at row 100 four are.
    found, message = steps_until_stopped(0.03)
    assert found == 96
    assert message == (
        f"{tmp_path}/quarantine/rank_0.jsonl: 4 of 100 rows are bad, "
        "data.max_bad_fraction allows 0.03; the first:\n"
        + "\n".join(
            f"{config.train}/0.jsonl:{line} (byte {byte}): "
            "hook raised KeyError: 'parts' (hook.py line 9)"
            for line, byte in [(1, 0), (31, 668), (61, 1345), (91, 2022)]
        )
    )
    # A run that goes on at row 95 has met them, too; one that starts again has not yet.
    position = {"0.jsonl": FilePosition(95, 0)}
    assert steps_until_stopped(0.03, positions=position) == (5, message)
    assert steps_until_stopped(0.03) == (96, message)


def test_the_end_of_an_epoch_judges_few_rows(tmp_path: Path) -> None:
    config = write(tmp_path, [[{"id": 0}, 1, 1, 1]]).model_copy(update={"shuffle": False})
    allowed = config.model_copy(update={"max_bad_fraction": 0.25})
    assert len(all_seen(list(dataset(allowed, StepSize(1, 1))))) == 3
    steps = iter(dataset(config.model_copy(update={"max_bad_fraction": 0.2}), StepSize(1, 1)))
    assert [seen(next(steps)) for _ in range(3)] == [[(1, 0)], [(2, 0)], [(3, 0)]]
    with pytest.raises(DataError) as caught:
        next(steps)
    assert str(caught.value).startswith("1 of 4 rows are bad, ")


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


def test_the_background_process_ends_with_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores TERM, which is all that Python tries at exit; DataLoader ends it when the last
    reference to its iterator goes."""
    at_exit: list[Callable[[], None]] = []
    ended: list[bool] = []

    class Loader:
        def __init__(self, items: Iterable[object], **_: object) -> None:
            self._items = items

        def __iter__(self) -> Iterator[object]:
            try:
                yield from self._items
            finally:
                ended.append(True)

    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(background, "DataLoader", Loader)
    unfinished = iter(step_loader(dataset(write(tmp_path, [[1] * 9]), StepSize(1, 1)), 2))
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


@given(
    files=st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=3),
    world_size=st.integers(1, 4),
    max_rows=st.integers(1, 12),
    micro_batch_size=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_ranks_share_the_validation_rows(
    files: list[list[int]], world_size: int, max_rows: int, micro_batch_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = write(Path(folder), files)
        config = config.model_copy(update={"validation": config.train})
        encoder = build_encoder(config, Path("no tokenizer"), IDS)
        source, size = list_validation(config), micro_batch_size
        found = [
            validation_batches(config, source, encoder, rank, world_size, size, max_rows)
            for rank in range(world_size)
        ]
    rows = [
        (100 * file + line, parts)
        for file, sizes in enumerate(files)
        for line, parts in enumerate(sizes)
    ]
    expected = [(name, part) for name, parts in rows[:max_rows] for part in range(parts)]
    batches = [batch for share in found for batch in share]
    examples = [example for batch in batches for example in batch.examples]
    assert sorted((int(e.input_ids[0]), e.part) for e in examples) == expected
    assert all(1 <= len(batch.examples) <= micro_batch_size for batch in batches)
    if all(parts == 1 for _, parts in rows):
        shares = [sum(len(batch.examples) for batch in share) for share in found]
        assert max(shares) - min(shares) <= 1
