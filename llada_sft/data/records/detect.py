"""Tells the format of a dataset from its first rows.

The rows are those of the first shard, in the order of the file; if it is short, of the next, too.
The first rank, which owns that shard, tells the format for all: what is a good row does not depend
on the rank that reads it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson

from llada_sft.config.record_formats import KnownFormat
from llada_sft.data.records.formats import format_of
from llada_sft.data.rows.row import MAX_LINE_BYTES
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.sources import NamedShard, Source
from llada_sft.data.storage.files import BYTE_ORDER_MARK, open_text

NUM_ROWS = 100


@dataclass(frozen=True)
class Detected:
    """What the first rows are.

    Attributes:
        format: A known format, or None if most rows have none.
        matching: How many of the rows have it.
        rows: How many rows were looked at.
    """

    format: KnownFormat | None
    matching: int
    rows: int

    def __str__(self) -> str:
        if self.rows == 0:
            return "no rows to tell the format of"
        what = self.format or "raw, no known format"
        return f"{what} ({self.matching:,} of the first {self.rows:,} rows)"


def detect_format(source: Source, cache_dir: str | None) -> Detected:
    """Return the format that most of the first rows have.

    Args:
        source: All shards of the dataset, and the names of fields.
        cache_dir: For remote shards.

    Raises:
        DataError: A shard cannot be read.
    """
    rows = list(islice(_first_rows(source.shards, cache_dir), NUM_ROWS))
    # Of two formats that are as frequent, the one that is met first.
    votes = Counter(_formats(rows, source.fields))
    if not votes:
        return Detected(None, 0, len(rows))
    winner, matching = votes.most_common(1)[0]
    return Detected(winner, matching, len(rows))


def _formats(rows: Iterable[bytes], fields: Mapping[str, str]) -> Iterator[KnownFormat | None]:
    for row in rows:
        # A row that is not JSON says nothing about the others.
        try:
            record = orjson.loads(row)
        except orjson.JSONDecodeError:
            continue
        yield format_of(record, fields)


def _first_rows(shards: Iterable[NamedShard], cache_dir: str | None) -> Iterator[bytes]:
    for named in shards:
        if isinstance(named.shard, Path):
            yield from _rows_of(named.shard)
        else:
            stream = RowStream([named], 0, shuffle=False, cache_dir=cache_dir)
            yield from (row.text for row in stream.rows(0, stream.start_positions()))


def _rows_of(path: Path) -> Iterator[bytes]:
    """Read lines without an index of the whole file: on a login node, none is made."""
    with open_text(path) as text:
        mark = BYTE_ORDER_MARK
        while line := text.readline(MAX_LINE_BYTES):
            line, mark = line.removeprefix(mark), b""
            if not line.isspace():
                yield line
