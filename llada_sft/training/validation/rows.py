"""The rows of a validation set: encoded by all ranks together, known to each of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Encoder, Example
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.sources import Source
from llada_sft.errors import DataError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus

# A row's number among those of its set, and its examples.
NumberedRow = tuple[int, list[Example]]


@dataclass(frozen=True)
class ValidationSet:
    """A set by its name, which is empty where there is only one."""

    name: str
    examples: list[Example]


def read_set(
    config: DataConfig,
    source: Source,
    encoder: Encoder,
    placement: Placement,
    consensus: Consensus,
    max_rows: int,
) -> ValidationSet:
    """Read the examples of the first `max_rows` rows of a set, in the order of the rows.

    Each rank encodes its share, and gets those of the others.

    Args:
        config: The data section. Its `end` must not be `batch_max`: with it the loss would
            depend on how examples meet in micro-batches.
        source: The shards of the set.
        encoder: Makes the examples of a row.
        placement: This rank.
        consensus: Exchanges the examples.
        max_rows: `train.validation_max_rows`.

    Raises:
        DataError: A row cannot be used, or no row makes an example.
        PeerFailedError: Another rank has found a row that cannot be used.
    """
    assert config.end != "batch_max"
    try:
        own = list(_encoded(config, source, encoder, placement, max_rows))
    except DataError:
        # The others learn of it here instead of waiting for this rank.
        consensus.gather(None)
        raise
    of_ranks: list[Any] = consensus.gather(own)
    if None in of_ranks:
        raise PeerFailedError("1 other rank(s) stopped; see their lines")
    rows = sorted((row for of_rank in of_ranks for row in of_rank), key=itemgetter(0))
    examples = [example for _, of_row in rows for example in of_row]
    if not examples:
        name = source.name
        key = f"data.validation.{name}" if name else "data.validation"
        do = f"remove the set {name}" if name else "set data.validation=null"
        raise DataError(
            f"{key}: none of its rows makes an example (the files are empty, or the hook"
            f" drops every row): fix it, or {do}"
        )
    return ValidationSet(source.name, examples)


def _encoded(
    config: DataConfig, source: Source, encoder: Encoder, placement: Placement, max_rows: int
) -> Iterator[NumberedRow]:
    """Encode this rank's share of the rows: every world_size-th."""
    stream = RowStream(source.shards, seed=0, shuffle=False, cache_dir=config.cache_dir)
    for number, row in enumerate(stream.rows(0, stream.start_positions())):
        if number >= max_rows:
            return
        if number % placement.world_size == placement.rank:
            yield number, encoder(row).examples
