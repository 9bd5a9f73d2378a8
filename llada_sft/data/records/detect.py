"""Tells the format of a dataset from its first rows.

The rows are those of the first shard, in the order of the file; if it is short, of the next, too.
The first rank, which owns that shard, tells the format for all: what is a good row does not depend
on the rank that reads it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import orjson

from llada_sft.config.record_formats import KnownFormat
from llada_sft.data.records.formats import format_of
from llada_sft.data.records.unread import listed_unread, unread_fields
from llada_sft.data.rows.json_value import parse_json
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.rows.unindexed import unindexed_rows
from llada_sft.data.sources import NamedShard, Source
from llada_sft.data.storage.files import BYTE_ORDER_MARK

NUM_ROWS = 100


@dataclass(frozen=True)
class Detected:
    """What the first rows are.

    Attributes:
        format: A known format, or None if most rows have none.
        matching: How many of the rows have it.
        rows: How many rows were looked at.
        unread: Fields that this format does not read, and how many of the rows have each.
    """

    format: KnownFormat | None
    matching: int
    rows: int
    unread: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.rows == 0:
            return "no rows to tell the format of"
        what = self.format or "raw, no known format"
        return f"{what} ({self.matching:,} of the first {self.rows:,} rows)"

    @property
    def unread_words(self) -> str:
        """What is not read, in words; empty if there is nothing."""
        if not self.unread:
            return ""
        return f"not read, in the first {self.rows:,} rows: {listed_unread(self.unread)}"


def detect_format(source: Source, cache_dir: str | None) -> Detected:
    """Return the format that most of the first rows have, or that the source is said to have.

    Args:
        source: All shards of the dataset, and what the config says of its rows.
        cache_dir: For remote shards.

    Raises:
        DataError: A shard cannot be read.
    """
    rows = list(islice(_first_rows(source.shards, cache_dir), NUM_ROWS))
    records = list(_parsed(rows))
    formats = [format_of(record, source.rules.fields) for record in records]
    winner: KnownFormat | None = None
    if source.format not in ("auto", "raw"):
        winner = source.format  # type: ignore[assignment]
    elif source.format == "auto" and formats:
        # Of two formats that are as frequent, the one that is met first.
        winner = Counter(formats).most_common(1)[0][0]
    matching = formats.count(winner)
    if winner is None:
        return Detected(None, matching, len(rows))
    of_winner = (
        record
        for record, found in zip(records, formats, strict=True)
        if found == winner and isinstance(record, Mapping)
    )
    unread = Counter(
        name for record in of_winner for name in unread_fields(record, winner, source.rules)
    )
    return Detected(winner, matching, len(rows), dict(sorted(unread.items())))


def _parsed(rows: Iterable[bytes]) -> Iterator[object]:
    for row in rows:
        # A row that is not JSON says nothing about the others.
        with suppress(orjson.JSONDecodeError):
            yield parse_json(row)


def _first_rows(shards: Iterable[NamedShard], cache_dir: str | None) -> Iterator[bytes]:
    for named in shards:
        if isinstance(named.shard, Path):
            for row in unindexed_rows(named):
                yield row.text.removeprefix(BYTE_ORDER_MARK) if row.byte == 0 else row.text
        else:
            stream = RowStream([named], 0, shuffle=False, cache_dir=cache_dir)
            yield from (row.text for row in stream.rows(0, stream.start_positions()))
