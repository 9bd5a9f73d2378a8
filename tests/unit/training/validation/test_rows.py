"""The rows of a validation set: each encoded once, by one rank, and known to all of them."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import build_encoder
from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.sources import list_validation
from llada_sft.errors import DataError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus
from llada_sft.training.validation.rows import ValidationSet, read_set
from tests.unit.data.stepping import IDS, write
from tests.unit.training.ranks import on_ranks

pytestmark = pytest.mark.usefixtures("own_cache_and_no_tokenizer")


def on_each_rank(config: DataConfig, world_size: int, max_rows: int) -> list[Any]:
    """Return what each rank reads of the training rows, or raises."""
    config = config.model_copy(update={"validation": config.train})
    (source,) = list_validation(config)
    encoder = build_encoder(config, Path("no tokenizer"), IDS)

    def work(rank: int, consensus: Consensus) -> ValidationSet:
        place = Placement(rank, world_size, rank, 0, "localhost", 1)
        return read_set(config, source, encoder, place, consensus, max_rows)

    return on_ranks(world_size, work)


@given(
    files=st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=3),
    world_size=st.integers(1, 4),
    max_rows=st.integers(1, 12),
)
@settings(max_examples=30, deadline=None)
def test_every_rank_knows_the_first_rows_in_their_order(
    files: list[list[int]], world_size: int, max_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = on_each_rank(write(Path(folder), files), world_size, max_rows)
    rows = [
        (100 * file + line, parts)
        for file, sizes in enumerate(files)
        for line, parts in enumerate(sizes)
    ]
    expected = [(name, part) for name, parts in rows[:max_rows] for part in range(parts)]
    for of_rank in found:
        if not expected:
            assert isinstance(of_rank, DataError)
            continue
        assert [(int(e.input_ids[0]), e.part) for e in of_rank.examples] == expected


def test_a_bad_row_of_one_rank_ends_all(tmp_path: Path) -> None:
    config = write(tmp_path, [[1, 1, {"id": 3, "parts": "two"}, 1]])
    first, *others = on_each_rank(config, 3, 10)[::-1]
    assert isinstance(first, BadRowError)
    assert "0.jsonl:3" in str(first)
    assert all(isinstance(other, PeerFailedError) for other in others)


def test_a_set_without_an_example_is_refused_by_all_ranks(tmp_path: Path) -> None:
    for error in on_each_rank(write(tmp_path, [[0, 0]]), 2, 10):
        assert str(error) == (
            "data.validation: none of its rows makes an example (the files are empty, or the hook"
            " drops every row): fix it, or set data.validation=null"
        )
