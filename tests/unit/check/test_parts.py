"""What is worked out of rows: which are read, how long they are, which stand twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llada_sft.check.chunks import Chunk, first_rows, spread_sample, whole_files
from llada_sft.check.duplicates import found_in, repeated
from llada_sft.check.lengths import summarize
from llada_sft.check.reading import Rows, join
from llada_sft.check.rendering import Shown, legend, lines_of


def chosen(chunks: list[Chunk]) -> list[tuple[int, int]]:
    return [(chunk.number, row) for chunk in chunks for row in chunk.rows]


FILES = st.lists(st.integers(0, 30), min_size=1, max_size=5)


@given(num_rows=FILES, chunk_rows=st.integers(1, 9), some=st.integers(1, 99))
def test_rows_are_chosen_once_and_in_order(num_rows: list[int], chunk_rows: int, some: int) -> None:
    every = [(number, row) for number, rows in enumerate(num_rows) for row in range(rows)]
    assert chosen(whole_files(num_rows, chunk_rows)) == every
    one_set = [len(num_rows)]
    assert chosen(first_rows(num_rows, one_set, some, chunk_rows)) == every[:some]
    own_sets = [1] * len(num_rows)
    first_of_each = [(number, row) for number, row in every if row < some]
    assert chosen(first_rows(num_rows, own_sets, some, chunk_rows)) == first_of_each
    sample = spread_sample(num_rows, some, chunk_rows)
    found = chosen(sample)
    assert len(found) == min(some, len(every))
    assert found == sorted(set(found) & set(every))
    assert all(len(chunk.rows) <= chunk_rows for chunk in sample)
    # Every file has its share of the sample, up to one row more or less.
    for number, rows in enumerate(num_rows):
        share = rows * len(found) / max(len(every), 1)
        assert abs(sum(1 for one, _ in found if one == number) - share) <= 1


def test_lengths_are_summarized() -> None:
    lengths = summarize(np.array([0, 1, 2, 3, 4, 5, 8, 9, 9, 100], np.uint32))
    assert lengths is not None
    assert (lengths.mean, lengths.longest) == (14.1, 100)
    assert lengths.percentiles == {50: 4, 90: 9, 99: 100}
    assert lengths.histogram == [
        *[(0, 1), (1, 1), (2, 1), (4, 2), (8, 2), (16, 2), (32, 0), (64, 0), (128, 1)]
    ]


def test_bins_begin_at_the_shortest() -> None:
    lengths = summarize(np.array([17, 30], np.uint32))
    assert lengths is not None
    assert lengths.histogram == [(32, 2)]
    assert summarize(np.array([], np.uint32)) is None


@given(lengths=st.lists(st.integers(0, 5000), min_size=1))
def test_a_histogram_counts_all(lengths: list[int]) -> None:
    found = summarize(np.array(lengths, np.uint32))
    assert found is not None
    ends = [-1, *(end for end, _ in found.histogram)]
    # The bin before the first one is empty.
    assert sum(count for _, count in found.histogram) == len(lengths)
    for low, (high, count) in zip(ends[1:], found.histogram[1:], strict=False):
        assert count == sum(low < length <= high for length in lengths)


def rows(records: list[int], ids: list[int]) -> Rows:
    def column(values: list[int]) -> NDArray[np.uint64]:
        return np.array(values, np.uint64)

    nothing = np.zeros(len(records), np.uint32)
    return Rows(
        lines=column(list(range(1, len(records) + 1))),
        records=column(records),
        ids=column(ids),
        bad=nothing.astype(bool),
        num_examples=nothing,
        lengths=nothing,
        responses=nothing,
        tails=nothing,
        voids=nothing,
    )


def test_a_row_repeats_another_by_its_text_or_by_its_tokens() -> None:
    found = rows([1, 2, 1, 3, 4, 2], [11, 12, 13, 12, 14, 15])
    assert repeated(found, first=2) == (3, [(2, 0), (3, 1)])
    assert repeated(rows([], []), first=2) == (0, [])


def test_rows_that_stand_in_another_dataset() -> None:
    found = rows([1, 2, 3, 1], [11, 12, 13, 14])
    others = rows([9, 1], [12, 99])
    assert found_in(found, others, first=2) == (3, [(0, 1), (1, 0)])
    assert found_in(others, found, first=9) == (2, [(0, 1), (1, 0)])
    assert found_in(found, rows([], []), first=2) == (0, [])


@given(records=st.lists(st.integers(0, 5)), ids=st.integers(0, 3))
def test_repeats_are_all_but_the_first(records: list[int], ids: int) -> None:
    found = rows(records, [100 + number for number in range(len(records))])
    assert repeated(found, 0)[0] == len(records) - len(set(records))


def test_joined_rows_follow_each_other() -> None:
    parts = [rows([1], [2]), rows([3, 4], [5, 6])]
    assert join(parts).records.tolist() == [1, 3, 4]
    assert len(join([])) == 0


SHOWN = Shown("a.jsonl:1", [("prompt", "Hi\n\x1b[31m"), ("response", "Yes"), ("end", "<eos>")])


def test_pieces_are_marked_where_there_is_no_colour() -> None:
    assert list(lines_of(SHOWN, colour=False)) == [
        "a.jsonl:1",
        "  [prompt]   Hi",
        r"             \x1b[31m",
        "  [response] Yes",
        "  [end]      <eos>",
    ]
    assert legend(colour=False) == "[prompt] prompt, [response] response, [end] end padding (EOS)"


@pytest.mark.parametrize("letter", ["\x1b", "\r", "\x07"])
def test_no_text_moves_the_cursor(letter: str) -> None:
    shown = Shown("a.jsonl:1", [("prompt", letter)])
    for colour in (True, False):
        text = "\n".join(lines_of(shown, colour))
        assert letter not in text.replace("\x1b[36m", "").replace("\x1b[0m", "")


def test_colours_stand_for_the_marks() -> None:
    _, *lines = lines_of(SHOWN, colour=True)
    text = "\n".join(lines)
    assert "\x1b[32mYes\x1b[0m\x1b[35m<eos>\x1b[0m" in text
    assert "[response]" not in text
