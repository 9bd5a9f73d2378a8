"""Validation rows: shared between the ranks, each once."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.examples.encode import build_encoder
from llada_sft.data.sources import list_validation
from llada_sft.training.validation.rows import validation_batches
from tests.unit.data.batches import examples_of
from tests.unit.data.stepping import IDS, write

pytestmark = pytest.mark.usefixtures("own_cache_and_no_tokenizer")


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
    examples = [example for batch in batches for example in examples_of(batch)]
    assert sorted((int(e.input_ids[0]), e.part) for e in examples) == expected
    assert all(1 <= len(batch.keys) <= micro_batch_size for batch in batches)
    if all(parts == 1 for _, parts in rows):
        shares = [sum(len(batch.keys) for batch in share) for share in found]
        assert max(shares) - min(shares) <= 1
