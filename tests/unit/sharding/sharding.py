"""What the tests of sharding share: the same rows in every kind of file; what became of them."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backports import zstd

from llada_sft.data.storage.files import open_text
from llada_sft.sharding import BAD_ROWS

Record = dict[str, Any]


def records(number: int) -> list[Record]:
    """Make records of strings, of different lengths; some have what a format may trip over."""
    odd = [
        'a "quote", a comma',
        "two\nlines",
        "é ü 漢字 🙂",
        "",
        " blanks ",
        "back\\slash",
        "}\r\n{",
    ]
    return [
        {"prompt": f"{i} {odd[i % len(odd)]}", "response": "x" * (i % 41)} for i in range(number)
    ]


def lines(rows: Iterable[Record]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _csv(rows: list[Record]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["prompt", "response"])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _parquet(rows: list[Record]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, row_group_size=100)
    return out.getvalue()


FORMATS: dict[str, Callable[[list[Record]], bytes]] = {
    "a.jsonl": lines,
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "a.jsonl.zst": lambda rows: zstd.compress(lines(rows)),
    "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "a.csv": _csv,
    "a.parquet": _parquet,
}


def shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != BAD_ROWS)


def texts_in(folder: Path) -> list[bytes]:
    """Read the text of each shard."""
    found = []
    for path in shards_in(folder):
        with open_text(path) as file:
            found.append(file.read())
    return found


def rows_in(folder: Path) -> list[Record]:
    """Read all rows, shard after shard."""
    return [json.loads(line) for text in texts_in(folder) for line in text.splitlines()]


def in_order(rows: Iterable[Record]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def bad_rows_in(folder: Path) -> list[Record]:
    path = folder / BAD_ROWS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
