"""Packs and groups of similar length: full, nothing lost, the same again from every position."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.rows.position import FilePosition, Pending, Positions
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.collate import EQUAL_TOKENS, pack, pad
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.data.steps.packing import costliest_first, in_order, of_similar_length, packs
from llada_sft.data.steps.yields import SAMPLE_ROWS
from tests.unit.data.batches import examples_of
from tests.unit.data.stepping import WholePositions

pytestmark = pytest.mark.usefixtures("no_tokenizer")

IDS = TokenIds(vocab_size=1000, eos_token_id=999, mask_token_id=998)
MAX_TOKENS = 12
# A record is {"id": n, "lengths": [...]}: an example of each length, EOS among it.
HOOK = """
def process_data(record, tokenizer, max_length):
    return [
        {"input_ids": [record["id"]] * (n - 1), "response_mask": [True] * (n - 1)}
        for n in record["lengths"]
    ]
"""
# For `write`'s config: padded micro-batches.
PADDED = {"batching": "padded", "max_tokens": None}
GROUPED = PADDED | {"group_by_length": True, "end": "batch_max"}
WAYS: dict[str, dict[str, object]] = {"packed": {}, "padded": PADDED, "grouped": GROUPED}
# One packed micro-batch: (id, part, tokens) of each example.
Seen = list[tuple[int, int, int]]


def example(length: int, line: int = 1) -> Example:
    mask = np.ones(length, np.bool_)
    return Example(np.full(length, line), mask, None, False, "a.jsonl", line, 0)


def lengths_of(groups: Iterator[list[Example]]) -> list[list[int]]:
    return [[len(one.input_ids) for one in group] for group in groups]


# -- groups ---------------------------------------------------------------------------------------


def test_packs_by_hand() -> None:
    """The first to come opens; then the longest that fits of the three that wait."""
    new = iter([example(n) for n in (5, 2, 6, 3, 4, 1, 9, 1)])
    # 5 opens; of 2, 6 and 3 it is 6; of 2, 3 and 4 none, though there is a 1 behind them.
    assert lengths_of(packs([], new, 12, 3)) == [[5, 6], [2, 4, 3, 1, 1], [9]]


def test_of_equally_long_ones_the_first_comes_first() -> None:
    new = iter([example(2, line) for line in (1, 2, 3, 4)])
    assert [[one.line for one in group] for group in packs([], new, 4, 3)] == [[1, 2], [3, 4]]


def test_in_order_begins_with_those_that_wait() -> None:
    waiting, new = [example(1), example(2), example(3)], iter([example(4), example(5)])
    groups = in_order(waiting, new, 2)
    assert [len(one.input_ids) for one in next(groups)] == [1, 2]
    assert [len(one.input_ids) for one in waiting] == [3]
    assert lengths_of(groups) == [[3, 4], [5]]


@given(
    lengths=st.lists(st.integers(1, 20), max_size=60),
    room=st.integers(20, 50),
    num_waiting=st.integers(1, 6),
)
def test_each_example_is_in_one_pack_and_no_pack_has_room(
    lengths: list[int], room: int, num_waiting: int
) -> None:
    waiting: list[Example] = []
    new = iter([example(length, line) for line, length in enumerate(lengths)])
    lines: list[int] = []
    for group in packs(waiting, new, room, num_waiting):
        left = room - sum(len(one.input_ids) for one in group)
        assert left >= 0
        # What waits does not fit, and it is as much as can wait.
        assert all(len(one.input_ids) > left for one in waiting)
        lines += [one.line for one in group]
        assert len(waiting) == min(num_waiting, len(lengths) - len(lines))
    assert sorted(lines) == list(range(len(lengths)))


def test_similar_lengths_by_hand() -> None:
    """The first to come opens; the nearest of the three behind it joins, the earlier of two."""
    new = iter([example(n) for n in (5, 9, 7, 3, 8, 1, 9)])
    # Of 9, 7 and 3 behind 5, 7 and 3 are equally near. Then 9 opens before 3, 8 and 1.
    assert lengths_of(of_similar_length([], new, 2, 4)) == [[5, 7], [9, 8], [3, 1], [9]]


@given(
    lengths=st.lists(st.integers(1, 20), max_size=60),
    size=st.integers(1, 5),
    num_waiting=st.integers(1, 9),
)
def test_each_example_is_in_one_group_and_the_oldest_in_the_next(
    lengths: list[int], size: int, num_waiting: int
) -> None:
    waiting: list[Example] = []
    new = iter([example(length, line) for line, length in enumerate(lengths)])
    groups, oldest = [], 0
    for group in of_similar_length(waiting, new, size, num_waiting):
        groups.append([one.line for one in group])
        assert groups[-1][0] == oldest
        rest = set(range(len(lengths))) - {line for done in groups for line in done}
        oldest = min(rest, default=-1)
        far = max(abs(len(one.input_ids) - len(group[0].input_ids)) for one in group)
        assert all(abs(len(one.input_ids) - len(group[0].input_ids)) >= far for one in waiting)
        assert len(waiting) <= max(num_waiting, size) - len(group)
    assert sorted(line for group in groups for line in group) == list(range(len(lengths)))
    assert all(len(group) == size for group in groups[:-1])


@pytest.mark.parametrize(("size", "least"), [(2, 0.95), (8, 0.65)])
def test_similar_lengths_leave_less_padding(size: int, least: float) -> None:
    random = np.random.default_rng(0)
    drawn = random.lognormal(np.log(764) - 0.5, 1.0, 4000).clip(8, 4096).astype(int)
    groups = lengths_of(of_similar_length([], map(example, drawn.tolist()), size, 32))
    assert drawn.sum() / sum(max(group) * len(group) for group in groups) >= least


def test_the_longest_micro_batch_comes_first() -> None:
    assert pad([example(3), example(2)], 0).work == 2 * 3 * (EQUAL_TOKENS + 3)
    # Of as many tokens, but in shorter examples.
    packed = [pack([example(3), example(3)]), pack([example(6)])]
    assert costliest_first(packed) == (packed[1], packed[0])
    assert packed[0].work == 2 * 3 * (EQUAL_TOKENS + 3)
    batches = [pad([example(n, line=n)], 0) for n in (2, 9, 4)]
    batches.append(pad([example(9, line=1)], 0))
    keys = [batch.keys[0].line for batch in costliest_first(batches)]
    assert keys == [9, 1, 4, 2]


@pytest.mark.parametrize("max_tokens", [4096, 8192, 16384])
def test_chat_like_lengths_leave_hardly_any_room(max_tokens: int) -> None:
    random = np.random.default_rng(0)
    drawn = random.lognormal(np.log(749) - 0.5, 1.0, 8000).clip(8, 4096).astype(int)
    groups = lengths_of(packs([], map(example, drawn.tolist()), max_tokens, 16))
    fill = drawn.sum() / (len(groups) * max_tokens)
    assert fill >= (0.99 if max_tokens == 4096 else 0.995)


def test_a_packed_micro_batch() -> None:
    first, second = example(3, line=7), example(2, line=8)
    first.response_mask[0] = False
    batch = pack([first, second])
    assert batch.input_ids.tolist() == [[7, 7, 7, 8, 8]]
    assert batch.response_mask.tolist() == [[False, True, True, True, True]]
    assert (batch.attention_mask, batch.lengths, batch.num_tokens) == (None, (3, 2), 5)
    assert batch.spans == [slice(0, 3), slice(3, 5)]


# -- steps ----------------------------------------------------------------------------------------


def write(folder: Path, files: Sequence[Sequence[Sequence[int]]]) -> DataConfig:
    """Write shards; a row is the lengths of its examples."""
    (folder / "hook.py").write_text(HOOK)
    (folder / "train").mkdir()
    for number, rows in enumerate(files):
        text = "".join(
            json.dumps({"id": 100 * number + line, "lengths": lengths}) + "\n\n"
            for line, lengths in enumerate(rows)
        )
        (folder / "train" / f"{number}.jsonl").write_text(text)
    return DataConfig(
        train=str(folder / "train"),
        hook=str(folder / "hook.py"),
        max_length=MAX_TOKENS,
        end=1,
        batching="packed",
        max_tokens=MAX_TOKENS,
        pack_buffer=3,
    )


def dataset(
    config: DataConfig,
    accumulate: int = 1,
    epochs: int = 1,
    epoch: int = 0,
    positions: Positions | None = None,
    place: tuple[int, int] = (0, 1),
    micro_batch_size: int = 1,
) -> WholePositions:
    sources = [source.of_rank(*place) for source in list_sources(config, epochs)]
    size = StepSize(micro_batch_size, accumulate)
    return WholePositions(config, Path("none"), IDS, sources, 3, size, epoch, positions)


def seen(step: LocalStep) -> list[Seen]:
    return [
        [(int(one.input_ids[0]), one.part, len(one.input_ids)) for one in examples_of(batch)]
        for batch in step.micro_batches
    ]


def each(steps: Sequence[LocalStep]) -> Counter[tuple[int, int, int]]:
    return Counter(one for step in steps for group in seen(step) for one in group)


def expected(files: Sequence[Sequence[Sequence[int]]]) -> Counter[tuple[int, int, int]]:
    return Counter(
        (100 * file + line, part, length)
        for file, rows in enumerate(files)
        for line, lengths in enumerate(rows)
        for part, length in enumerate(lengths)
    )


FILES = st.lists(
    st.lists(st.lists(st.integers(2, MAX_TOKENS), max_size=3), max_size=8), min_size=1, max_size=4
)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@given(files=FILES, accumulate=st.integers(1, 3), shuffle=st.booleans())
@settings(max_examples=40, deadline=None)
def test_going_on_from_every_step_gives_the_same_groups(
    size: int, files: list[list[list[int]]], accumulate: int, shuffle: bool
) -> None:
    """Packed (`size` 1), or padded in groups of similar length."""
    with tempfile.TemporaryDirectory() as folder:
        update = {"shuffle": shuffle, "costliest_first": True} | (GROUPED if size > 1 else {})
        config = write(Path(folder), files).model_copy(update=update)
        steps = list(dataset(config, accumulate, 2, micro_batch_size=size))
        for epoch in (0, 1):
            assert each([one for one in steps if one.epoch == epoch]) == expected(files)
        for number, step in enumerate(steps):
            assert len(step.micro_batches) == accumulate
            if size == 1:
                assert all(batch.num_tokens <= MAX_TOKENS for batch in step.micro_batches)
            work = [batch.work for batch in step.micro_batches]
            assert work == sorted(work, reverse=True)
            resumed = dataset(
                config, accumulate, 2, step.epoch, step.positions, micro_batch_size=size
            )
            rest = [one for one in resumed if one.num_examples]
            wanted = [one for one in steps[number + 1 :] if one.num_examples]
            assert [(one.epoch, seen(one), one.positions) for one in rest] == [
                (one.epoch, seen(one), one.positions) for one in wanted
            ]


@given(
    files=FILES,
    before=st.integers(1, 3),
    after=st.integers(1, 4),
    stop=st.integers(0, 6),
    first=st.sampled_from(["packed", "grouped"]),
    then=st.sampled_from(["packed", "padded", "grouped"]),
)
@settings(max_examples=40, deadline=None)
def test_another_number_of_ranks_delivers_the_rest_once(
    files: list[list[list[int]]], before: int, after: int, stop: int, first: str, then: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = write(Path(folder), files)
        config = whole.model_copy(update=WAYS[first])
        # Fewer files than ranks are refused elsewhere.
        before, after = min(before, len(files)), min(after, len(files))
        trained: list[LocalStep] = []
        positions: Positions = {}
        for rank in range(before):
            source = dataset(config, place=(rank, before), micro_batch_size=2)
            positions |= source.start_positions()
            steps = [one for one in source if one.num_examples][:stop]
            trained += steps
            positions |= steps[-1].positions if steps else {}
        config = whole.model_copy(update=WAYS[then])
        for rank in range(after):
            trained += dataset(
                config, 2, positions=positions, place=(rank, after), micro_batch_size=3
            )
    assert each(trained) == expected(files)


def test_what_waits_is_in_the_position(tmp_path: Path) -> None:
    config = write(tmp_path, [[[5], [2, 6], [9], [7]]]).model_copy(update={"shuffle": False})
    first = next(iter(dataset(config)))
    assert seen(first) == [[(0, 0, 5), (1, 1, 6)]]
    # Blank lines between: row 2 is line 5. Its examples of 9 and 7 wait behind the one of 2.
    waiting = (Pending(0, 3, 0), Pending(1, 5, 0), Pending(2, 7, 0))
    assert first.positions == {"0.jsonl": FilePosition(4, 0, waiting)}
    resumed = list(dataset(config, positions=first.positions))
    assert [seen(one) for one in resumed[:2]] == [[[(1, 0, 2), (2, 0, 9)]], [[(3, 0, 7)]]]
    assert resumed[-1].positions == {"0.jsonl": FilePosition(4, 0)}


def test_what_waits_for_its_like_is_in_the_position(tmp_path: Path) -> None:
    config = write(tmp_path, [[[5], [2, 6], [9], [7]]])
    config = config.model_copy(update={"shuffle": False} | GROUPED)
    first = next(iter(dataset(config, micro_batch_size=2)))
    assert seen(first) == [[(0, 0, 5), (1, 1, 6)]]
    # One of the three that were read waits; the rest of the rows are not read.
    assert first.positions == {"0.jsonl": FilePosition(2, 0, (Pending(0, 3, 0),))}
    resumed = list(dataset(config, positions=first.positions, micro_batch_size=2))
    assert [seen(one) for one in resumed[:2]] == [[[(1, 0, 2), (3, 0, 7)]], [[(2, 0, 9)]]]


def test_the_steps_of_an_epoch_are_estimated_from_tokens(tmp_path: Path) -> None:
    # 12 rows of 4 and 8 tokens: 12 packs of 12, two in a step.
    config = write(tmp_path, [[[4, 8]] * 12])
    packed = dataset(config, accumulate=2)
    packed.know_yields(None, SAMPLE_ROWS)
    steps = [one for one in packed if one.num_examples]
    assert [one.epoch_steps for one in steps] == [6] * 6
    # What waits to be packed is counted, too.
    assert [one.steps_left for one in steps] == [5, 4, 3, 2, 1, 0]
    assert all(one.estimated for one in steps)
    padded = config.model_copy(update={"batching": "padded", "max_tokens": None})
    steps = list(dataset(padded, 2, micro_batch_size=3))
    assert [one.epoch_steps for one in steps] == [2, 2, 2, 2, 2]


def test_a_sample_stands_for_all_rows(tmp_path: Path) -> None:
    rows: list[list[int]] = [[6]] * 40
    config = write(tmp_path, [rows]).model_copy(update={"max_bad_fraction": 1.0})
    path = Path(config.train) / "0.jsonl"
    # A row that cannot be used makes no example: the training will name it.
    path.write_text("not JSON\n" * 40 + path.read_text())
    sampled = dataset(config)
    sampled.know_yields(None, 20)
    first = next(iter(sampled))
    ((num_rows, num_examples, num_tokens),) = first.yields
    assert num_rows == 20
    assert 6 <= num_examples <= 14
    assert num_tokens == 6 * num_examples
    assert first.epoch_steps == -(-(80 * num_tokens) // 20 // 12)


def test_no_rows_make_no_steps(tmp_path: Path) -> None:
    (end,) = dataset(write(tmp_path, [[]]))
    assert (end.epoch_steps, end.steps_left, end.end_of_epoch) == (0, 0, True)
