"""What becomes of an epoch's rows: each is counted once, and bad ones have their own place."""

import json
from itertools import islice
from pathlib import Path

import pytest

from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.errors import DataError
from tests.unit.data.stepping import all_seen, dataset, write

pytestmark = pytest.mark.usefixtures("no_tokenizer")
SIZE = StepSize(1, 1)
# Without "parts" the hook raises KeyError.
BAD: dict[str, object] = {"id": 1}


def counts(steps: list[LocalStep]) -> RowCounts:
    return sum((step.rows for step in steps), start=RowCounts())


@pytest.mark.parametrize("num_steps", range(1, 7))
def test_a_row_that_was_begun_before_a_checkpoint_is_counted_once(
    tmp_path: Path, num_steps: int
) -> None:
    config = write(tmp_path, [[3, 0, 2, 1]])
    first = list(islice(dataset(config, SIZE), num_steps))
    rest = list(dataset(config, SIZE, positions=first[-1].positions))
    assert len(all_seen(first + rest)) == 6
    whole = counts(first + rest)
    assert (whole.rows, whole.dropped_by_hook) == (4, 1)


def test_a_bad_row_is_written_down_at_its_own_place(tmp_path: Path) -> None:
    config = write(tmp_path, [[BAD, 1, 1, BAD, 2]])
    config = config.model_copy(update={"shuffle": False, "max_bad_fraction": 1.0})
    path = tmp_path / "quarantine/rank_0.jsonl"
    list(dataset(config, SIZE, quarantine=path))
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["line"], entry["epoch"], entry["row"]) for entry in entries] == [
        (1, 0, 0),
        (4, 0, 3),
    ]


def test_a_run_that_resumes_exactly_at_a_bad_row_judges_as_one_that_was_never_stopped(
    tmp_path: Path,
) -> None:
    # 1 bad row of 100 is allowed, 2 of 150 are not.
    rows: list[int | dict[str, object]] = [1] * 149
    rows[120:120] = [BAD]
    rows[30] = BAD
    config = write(tmp_path, [rows])
    config = config.model_copy(update={"shuffle": False, "max_bad_fraction": 0.01})
    path = tmp_path / "quarantine/rank_0.jsonl"
    with pytest.raises(DataError, match="2 of 121 rows are bad"):
        list(dataset(config, SIZE, quarantine=path))
    # Its bad row was met ahead of the checkpoint, whose next row it is: it is not done.
    steps = list(islice(dataset(config, SIZE), 119))
    (at,) = steps[-1].positions.values()
    assert at.row == 120
    resumed = iter(dataset(config, SIZE, positions=steps[-1].positions, quarantine=path))
    with pytest.raises(DataError, match="2 of 121 rows are bad"):
        next(resumed)
    steps = list(islice(dataset(config, SIZE), 118))
    resumed = iter(dataset(config, SIZE, positions=steps[-1].positions, quarantine=path))
    assert next(resumed).num_examples == 1


def test_rows_of_a_later_epoch_are_no_new_ones_for_the_share_of_bad_rows(tmp_path: Path) -> None:
    config = write(tmp_path, [[1] * 200])
    # In the second epoch 60 rows are bad, of 200 different ones.
    (tmp_path / "hook.py").write_text("""
calls = 0
def process_data(record, tokenizer, max_length):
    global calls
    calls += 1
    if 200 < calls <= 260: raise ValueError("of the second epoch")
    return {"input_ids": [1, 2], "response_mask": [0, 1]}
""")
    config = config.model_copy(update={"max_bad_fraction": 0.25})
    steps: list[LocalStep] = []
    with pytest.raises(DataError, match="51 of 200 rows are bad"):
        steps.extend(dataset(config, SIZE, epochs=2))


def test_few_rows_are_judged_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, BAD, 1]]).model_copy(update={"max_bad_fraction": 0.3})
    steps: list[LocalStep] = []
    with pytest.raises(DataError, match="1 of 3 rows are bad"):
        steps.extend(dataset(config, SIZE))
