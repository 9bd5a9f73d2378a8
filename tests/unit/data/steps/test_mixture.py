"""Sources mixed by weight: shares, epochs of their own, and going on, on any number of ranks."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.config.sections.data import DataConfig, SourceConfig
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.rows.position import Positions
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.data.steps.yields import SAMPLE_ROWS
from llada_sft.training.checkpoint.data_state import DataState
from tests.unit.data.stepping import WholePositions

pytestmark = pytest.mark.usefixtures("no_tokenizer")

IDS = TokenIds(vocab_size=1000, eos_token_id=999, mask_token_id=998)
# A record is {"id": n, "length": l, "parts": p}: p examples of l tokens, EOS among them.
HOOK = """
def process_data(record, tokenizer, max_length):
    tokens = [record["id"]] * (record["length"] - 1)
    return [{"input_ids": tokens, "response_mask": [True] * len(tokens)}] * record["parts"]
"""
Seen = tuple[int, str, int, int]
Files = list[int]


def write(
    folder: Path,
    sources: Mapping[str, tuple[Files, float, int]],
    lengths: Mapping[str, int] | None = None,
    parts: int = 1,
    **more: Any,
) -> DataConfig:
    """Write sources: rows of each file, weight, epochs."""
    (folder / "hook.py").write_text(HOOK)
    for name, (files, _, _) in sources.items():
        (folder / name).mkdir()
        length = (lengths or {}).get(name, 5)
        for number, rows in enumerate(files):
            record = json.dumps({"id": 7, "length": length, "parts": parts}) + "\n"
            (folder / name / f"{number}.jsonl").write_text(record * rows)
    return DataConfig(
        train={
            name: SourceConfig(path=str(folder / name), weight=weight, epochs=epochs)
            for name, (_, weight, epochs) in sources.items()
        },
        **{"hook": str(folder / "hook.py"), "max_length": 50, "end": 1, **more},
    )


def dataset(
    config: DataConfig, positions: Positions | None = None, place: tuple[int, int] = (0, 1)
) -> WholePositions:
    sources = [source.of_rank(*place) for source in list_sources(config, epochs=1)]
    size = StepSize(2, 1)
    return WholePositions(config, Path("none"), IDS, sources, 3, size, positions=positions)


def examples(steps: list[LocalStep]) -> list[Seen]:
    return [
        (one.epoch, one.file, one.line, one.part)
        for step in steps
        for batch in step.micro_batches
        for one in batch.keys
    ]


def names(steps: list[LocalStep]) -> Counter[str]:
    return Counter(file.partition("/")[0] for _, file, _, _ in examples(steps))


def expected(sources: Mapping[str, tuple[Files, float, int]], parts: int = 1) -> list[Seen]:
    return sorted(
        (epoch, f"{name}/{file}.jsonl", line, part)
        for name, (files, _, epochs) in sources.items()
        for epoch in range(epochs)
        for file, rows in enumerate(files)
        for line in range(1, rows + 1)
        for part in range(parts)
    )


def as_saved(positions: Positions) -> Positions:
    """The positions after they were written to a checkpoint and read again."""
    state = DataState(0, positions, dict.fromkeys(positions, "1-1"))
    return DataState.from_json(json.loads(json.dumps(state.to_json()))).positions


def test_the_shares_are_right_at_any_time(tmp_path: Path) -> None:
    weights = {"chat": 0.7, "code": 0.2, "math": 0.1}
    config = write(tmp_path, {name: ([400, 300], w, 9) for name, w in weights.items()})
    steps = list(islice(dataset(config), 500))
    for end in range(50, 501, 50):
        found = names(steps[:end])
        for name, weight in weights.items():
            assert abs(found[name] - weight * 2 * end) <= 1
    given = [sum(column) for column in zip(*(step.by_source for step in steps), strict=True)]
    assert given == [700, 200, 100]


def test_shares_of_tokens(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        {"long": ([300], 3.0, 9), "short": ([900], 1.0, 9)},
        lengths={"long": 40, "short": 4},
        mix_by="tokens",
    )
    steps = list(islice(dataset(config), 200))
    given = [sum(column) for column in zip(*(step.by_source for step in steps), strict=True)]
    found = names(steps)
    assert given == [40 * found["long"], 4 * found["short"]]
    assert abs(given[0] / sum(given) - 0.75) < 0.01


def test_a_source_that_is_done_stays_at_the_end_of_its_last_epoch(tmp_path: Path) -> None:
    *_, last = dataset(write(tmp_path, {"a": ([6], 1.0, 1), "b": ([3], 1.0, 4)}))
    ends = {name: (position.epoch, position.row) for name, position in last.positions.items()}
    assert ends == {"a/0.jsonl": (0, 6), "b/0.jsonl": (3, 3)}


def test_a_source_whose_epochs_were_lowered_below_its_present_one_is_done(tmp_path: Path) -> None:
    config = write(tmp_path, {"a": ([4], 1.0, 3), "b": ([20], 1.0, 1)})
    steps = list(islice(dataset(config), 6))
    assert {epoch for epoch, file, _, _ in examples(steps) if file[0] == "a"} == {0, 1}
    assert config.train is not None and isinstance(config.train, dict)
    sources = config.train | {"a": config.train["a"].model_copy(update={"epochs": 1})}
    lowered = config.model_copy(update={"train": sources})
    rest = examples(list(dataset(lowered, as_saved(steps[-1].positions))))
    assert {file[0] for _, file, _, _ in rest} == {"b"}
    assert len(rest) == 20 - 6


def test_a_source_that_is_through_drops_out(tmp_path: Path) -> None:
    sources = {"a": ([6], 1.0, 1), "b": ([3], 1.0, 4), "empty": ([0], 5.0, 1)}
    steps = list(dataset(write(tmp_path, sources)))
    assert sorted(examples(steps)) == expected(sources)
    order = [file[0] for _, file, _, _ in examples(steps)]
    assert order == ["a", "b"] * 6 + ["b"] * 6
    epochs = [epoch for epoch, file, _, _ in examples(steps) if file[0] == "b"]
    assert epochs == sorted(epochs)
    assert [step.end_of_epoch for step in steps] == [False] * 9 + [True]
    assert [step.rows_done for step in steps[-2:]] == [18, 18]
    assert steps[0].epoch_rows == 18


def test_epochs_have_orders_of_their_own(tmp_path: Path) -> None:
    steps = list(dataset(write(tmp_path, {"a": ([40], 1.0, 2)})))
    lines = [line for _, _, line, _ in examples(steps)]
    assert sorted(lines[:40]) == sorted(lines[40:])
    assert lines[:40] != lines[40:]


SOURCES = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.tuples(
        st.lists(st.integers(0, 7), min_size=3, max_size=4),
        st.sampled_from([0.1, 1.0, 5.0]),
        st.integers(1, 3),
    ),
    min_size=1,
)
BATCHING = st.sampled_from(
    [
        {},
        {"batching": "packed", "max_tokens": 50, "pack_buffer": 3},
        {"shuffle": False},
        {"mix_by": "tokens"},
    ]
)
LENGTHS = {"a": 3, "b": 5, "c": 9}


@pytest.mark.slow
@given(sources=SOURCES, stops=st.lists(st.integers(0, 6), max_size=3), more=BATCHING)
@settings(max_examples=40, deadline=None)
def test_going_on_gives_the_same_steps(
    sources: dict[str, tuple[Files, float, int]], stops: list[int], more: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = write(Path(folder), sources, LENGTHS, parts=2, **more)
        whole = list(dataset(config))
        found: list[LocalStep] = []
        positions: Positions | None = None
        for stop in stops:
            some = list(islice(dataset(config, positions), stop))
            found += some
            positions = as_saved(some[-1].positions) if some else positions
        found += list(dataset(config, positions))
    kept = [step for step in found if step.num_examples]
    assert examples(kept) == examples(whole)
    assert [step.positions for step in kept] == [s.positions for s in whole if s.num_examples]
    assert sorted(examples(whole)) == expected(sources, parts=2)
    # Each row counts once in each epoch of its source, also where its epoch or an attempt ends.
    rows = sum(sum(files) * epochs for files, _, epochs in sources.values())
    assert sum(step.rows.rows for step in whole) == rows
    assert sum(step.rows.rows for step in found) == rows


@given(
    sources=SOURCES,
    stops=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), max_size=4),
    more=BATCHING,
)
@settings(max_examples=40, deadline=None)
def test_other_numbers_of_ranks_deliver_the_rest_once(
    sources: dict[str, tuple[Files, float, int]],
    stops: list[tuple[int, int]],
    more: dict[str, Any],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = write(Path(folder), sources, **more)
        trained: list[LocalStep] = []
        positions: Positions | None = None
        for world_size, stop in [*stops, (2, 1000)]:
            ranks = [dataset(config, positions, (rank, world_size)) for rank in range(world_size)]
            reached: Positions = {}
            for rank in ranks:
                steps = list(islice(rank, stop))
                trained += steps
                reached |= rank.start_positions() if positions is None else {}
                reached |= steps[-1].positions if steps else {}
            positions = as_saved({**(positions or {}), **reached})
    assert sorted(examples(trained)) == expected(sources)


def test_a_file_that_was_added_waits_for_the_next_epoch_of_its_source(tmp_path: Path) -> None:
    config = write(tmp_path, {"a": ([4], 1.0, 4), "b": ([100], 1.0, 1)})
    first = list(islice(dataset(config), 6))
    assert {epoch for epoch, file, _, _ in examples(first) if file[0] == "a"} == {0, 1}
    (tmp_path / "a" / "new.jsonl").write_text('{"id": 8, "length": 5, "parts": 1}\n')
    rest = examples(list(dataset(config, first[-1].positions)))
    assert [epoch for epoch, file, _, _ in rest if file == "a/new.jsonl"] == [2, 3]


def test_steps_of_all_epochs(tmp_path: Path) -> None:
    sources = {"a": ([7], 1.0, 3), "b": ([5], 1.0, 1)}
    (tmp_path / "padded").mkdir()
    (tmp_path / "packed").mkdir()
    padded = list(dataset(write(tmp_path / "padded", sources)))
    assert [one.steps_left for one in padded[:-1]] == list(range(12, -1, -1))
    config = write(tmp_path / "packed", sources, batching="packed", max_tokens=50)
    packed = dataset(config)
    packed.know_yields(None, SAMPLE_ROWS)
    steps = list(packed)[:-1]
    assert len(steps) == -(-26 * 5 // 50)
    assert [one.steps_left for one in steps] == [2, 1, 0]


def test_epochs_below_the_one_that_a_source_is_in_end_it_at_once(tmp_path: Path) -> None:
    config = write(tmp_path, {"a": ([8], 1.0, 3), "b": ([40], 1.0, 1)})
    # 12 rows of each: "a" is in its second epoch.
    made = list(islice(dataset(config), 12))
    assert isinstance(config.train, dict)
    fewer = {name: one.model_copy(update={"epochs": 1}) for name, one in config.train.items()}
    rest = list(
        dataset(config.model_copy(update={"train": fewer}), positions=as_saved(made[-1].positions))
    )
    assert names(rest) == {"b": 28}
    assert [step.steps_left for step in rest] == [*reversed(range(14)), 0]
    assert {(step.rows_done, step.epoch_rows) for step in rest[-1:]} == {(48, 48)}
