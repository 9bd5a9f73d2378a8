"""Bad rows: counted in the step that follows, quarantined once, and too many of them."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.examples.quarantine import REMEDY
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.rows import shard_reader
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.errors import DataError
from tests.unit.data.stepping import all_seen, dataset, seen, write

pytestmark = pytest.mark.usefixtures("no_tokenizer")


def test_a_bad_row_stops_the_steps_with_its_place(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, {"id": 1}]]).model_copy(update={"shuffle": False})
    steps = iter(dataset(config, StepSize(1, 1)))
    assert seen(next(steps)) == [(0, 0)]
    with pytest.raises(DataError) as caught:
        next(steps)
    place = f"{config.train}/0.jsonl:2 (byte 22)"
    assert str(caught.value) == (
        f"{place}: hook raised KeyError: 'parts' (hook.py line 9); {REMEDY}"
    )


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
        RowCounts(rows=4, bad={"hook_raised": 1}, dropped_by_hook=1),
        RowCounts(rows=2, skipped=1),
        RowCounts(rows=2, bad={"hook_raised": 1}, dropped_by_hook=1),
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
        patch.setattr(shard_reader, "MAX_LINE_BYTES", 200)
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
            assert total.dropped_by_hook == sum(rows.count(0) for rows in files)
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
        "data.max_bad_fraction allows 0.03; llada-sft check finds them all; the first:\n"
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
