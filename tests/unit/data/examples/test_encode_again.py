"""Rows that are half done begin again when their examples are others now: all of them, and once."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.config.sections.data import DataConfig, SourceConfig
from llada_sft.data.examples.hook import examples_key, hook_hash
from llada_sft.data.rows.position import FilePosition, Pending, Positions
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.local_step import StepSize
from llada_sft.errors import DataError
from tests.unit.data.stepping import IDS, WholePositions, all_seen, dataset, write

pytestmark = pytest.mark.usefixtures("no_tokenizer")

# As `steps.HOOK`, but each row makes three examples, and some rows are bad.
NEW_HOOK = """
def process_data(record, tokenizer, max_length):
    if record["id"] in BAD:
        raise ValueError("bad")
    mask = [False, True]
    return [{"input_ids": [record["id"], part], "response_mask": mask} for part in range(3)]
"""


def new_hook(config: DataConfig, bad: tuple[int, ...] = ()) -> None:
    Path(config.hook).write_text(NEW_HOOK.replace("BAD", repr(bad)))


def test_a_row_in_the_middle_comes_whole_and_first(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 3, 1, 1]]).model_copy(update={"shuffle": False})
    new_hook(config)
    steps = dataset(config, StepSize(2, 1), positions={"0.jsonl": FilePosition(1, 2)})
    assert steps.encode_again() == 1
    assert all_seen(list(steps)) == [(1, 0), (1, 1), (1, 2)] + [
        (row, part) for row in (2, 3) for part in range(3)
    ]


def test_a_row_that_waits_and_is_in_the_middle_comes_once(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 3, 1]])
    update = {"shuffle": False, "batching": "packed", "max_tokens": 50}
    config = config.model_copy(update=update)
    new_hook(config)
    waits = (Pending(0, 1, 0), Pending(1, 2, 0), Pending(2, 2, 1))
    steps = dataset(config, StepSize(1, 1), positions={"0.jsonl": FilePosition(1, 2, waits)})
    assert steps.encode_again() == 2
    assert Counter(all_seen(list(steps))) == Counter(
        (row, part) for row in range(3) for part in range(3)
    )


def test_nothing_is_half_done(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 1, 1]]).model_copy(update={"shuffle": False})
    new_hook(config)
    steps = dataset(config, StepSize(1, 1), positions={"0.jsonl": FilePosition(2, 0)})
    assert steps.encode_again() == 0
    assert all_seen(list(steps)) == [(2, 0), (2, 1), (2, 2)]
    fresh = dataset(config, StepSize(1, 1))
    assert fresh.encode_again() == 0
    assert len(all_seen(list(fresh))) == 9


def test_a_half_done_row_may_be_a_bad_one_now(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 3, 1]]).model_copy(update={"shuffle": False})
    new_hook(config, bad=(1,))
    at = {"0.jsonl": FilePosition(1, 2)}
    steps = dataset(config, StepSize(2, 1), positions=at)
    steps.encode_again()
    with pytest.raises(DataError, match=r"0\.jsonl:2 \(byte \d+\): hook raised ValueError: bad"):
        list(steps)
    allowed = config.model_copy(update={"max_bad_fraction": 0.5})
    quarantine = tmp_path / "rank_0.jsonl"
    steps = dataset(allowed, StepSize(2, 1), positions=at, quarantine=quarantine)
    steps.encode_again()
    assert all_seen(list(steps)) == [(2, 0), (2, 1), (2, 2)]
    assert quarantine.read_text().count('"hook_raised"') == 1


@given(
    files=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=3),
    accumulate=st.integers(1, 2),
    shuffle=st.booleans(),
    packed=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_from_every_step_each_row_is_trained_by_one_hook_or_is_half_done(
    files: list[list[int]], accumulate: int, shuffle: bool, packed: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = write(Path(folder), files).model_copy(update={"shuffle": shuffle})
        if packed:
            update = {"batching": "packed", "max_tokens": 51, "pack_buffer": 3}
            config = config.model_copy(update=update)
        size = StepSize(1 if packed else 2, accumulate)
        old_hook = Path(config.hook).read_text()
        first = list(dataset(config, size))
        sizes = {
            100 * file + row: n for file, rows in enumerate(files) for row, n in enumerate(rows)
        }
        for number, step in enumerate(first):
            Path(config.hook).write_text(old_hook)
            before = Counter(row for row, _ in all_seen(first[: number + 1]))
            new_hook(config)
            steps = dataset(config, size, 1, step.epoch, step.positions)
            half_done = steps.encode_again()
            after = Counter(row for row, _ in all_seen(list(steps)))
            # What the new hook makes of a row comes whole, or not at all.
            assert set(after.values()) <= {3}
            repeated = [row for row in after if before[row]]
            assert len(repeated) <= half_done
            for row, parts in sizes.items():
                # Done, or begun again; never less, and a finished one never again.
                assert (before[row] == parts and row not in repeated) or after[row] == 3
                assert not (before[row] == parts > 0 and row in repeated)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_in_a_mixture_each_source_has_its_own(tmp_path: Path, batching: str) -> None:
    rows = {"a": [3, 1, 2, 3], "b": [2, 3, 3]}
    sources = {}
    for number, (name, parts) in enumerate(rows.items()):
        folder = tmp_path / name
        folder.mkdir()
        config = write(folder, [[]] * number + [parts])
        # Rows are known by their ids: 0, 1, … and 100, 101, …
        sources[name] = SourceConfig(path=str(folder / "train" / f"{number}.jsonl"))
    update = {"train": sources, "batching": batching}
    size = StepSize(2, 1)
    if batching == "packed":
        update |= {"max_tokens": 51, "pack_buffer": 3}
        size = StepSize(1, 1)
    config = config.model_copy(update=update)
    old_hook = Path(config.hook).read_text()

    def steps(positions: Positions | None = None) -> WholePositions:
        return WholePositions(
            config, Path("none"), IDS, list_sources(config, 2), 3, size, 0, positions
        )

    first = list(steps())
    for number, step in enumerate(first[:-1]):
        Path(config.hook).write_text(old_hook)
        before = Counter(row for row, _ in all_seen(first[: number + 1]))
        new_hook(config)
        again = steps(step.positions)
        half_done = again.encode_again()
        after = Counter(row for row, _ in all_seen(list(again)))
        # Whole rows, each at most once for each of its two epochs.
        assert set(after.values()) <= {3, 6}
        sizes = {
            100 * source + row: n
            for source, each in enumerate(rows.values())
            for row, n in enumerate(each)
        }
        repeated = 0
        for row, parts_of_row in sizes.items():
            epochs_before, rest = divmod(before[row], parts_of_row)
            epochs_after = after[row] // 3
            repeated += epochs_before + epochs_after - 2 + (rest > 0)
            assert epochs_before + epochs_after >= 2
        assert repeated <= half_done


def test_the_key_is_of_all_that_makes_examples(tmp_path: Path) -> None:
    config = write(tmp_path, [[1]])
    key = examples_key(config)
    others = [
        {"max_length": 49},
        {"on_too_long": "skip"},
        {"end": 2},
        {"end": "void"},
        {"end": "void", "end_tokens": 3},
        {"end": "void", "void_token_id": 3},
        {"multi_turn": "all"},
        {"format": "raw"},
        {"fields": {"text": "a"}},
    ]
    keys = [examples_key(config.model_copy(update=update)) for update in others]
    assert len({key, *keys}) == 1 + len(others)
    for update in ({"train": "elsewhere"}, {"max_bad_fraction": 0.5}, {"pack_buffer": 2}):
        assert examples_key(config.model_copy(update=update)) == key
    # The text counts, not where it lies.
    copy = tmp_path / "copy.py"
    copy.write_bytes(Path(config.hook).read_bytes())
    assert examples_key(config.model_copy(update={"hook": str(copy)})) == key
    copy.write_text(copy.read_text() + "#")
    assert examples_key(config.model_copy(update={"hook": str(copy)})) != key
    assert hook_hash(tmp_path / "none.py") != hook_hash(copy)
