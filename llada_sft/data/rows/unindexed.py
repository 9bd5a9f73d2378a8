"""The first rows of a shard, read without an index of the whole file: a login node makes none."""

from collections.abc import Iterator
from pathlib import Path

from llada_sft.data.rows.row import MAX_LINE_BYTES, Row
from llada_sft.data.sources import NamedShard
from llada_sft.data.storage.files import open_text


def unindexed_rows(named: NamedShard) -> Iterator[Row]:
    """Yield the rows of a local shard in the order of its lines, up to one that is too long.

    Raises:
        DataError: It cannot be read.
    """
    assert isinstance(named.shard, Path)
    path, byte = str(named.shard), 0
    with open_text(named.shard) as text:
        number = 0
        while (line := text.readline(MAX_LINE_BYTES)) and len(line) < MAX_LINE_BYTES:
            number += 1
            if not line.isspace():
                yield Row(named.name, number, byte, line, path)
            byte += len(line)
