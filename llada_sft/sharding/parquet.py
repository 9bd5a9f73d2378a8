"""The rows of .parquet: a field for each column; lists and structs become JSON, times ISO text."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llada_sft.errors import DataError
from llada_sft.sharding.blocks import RowBlock
from llada_sft.sharding.findings import Findings
from llada_sft.sharding.json_lines import Parsed, Unusable, blocks_of

_BATCH_BYTES = 2**22
_MAX_BATCH_ROWS = 4096
_READ_BYTES = 1 << 20
# How pandas names the column of an index without a name.
_INDEX_NAME = re.compile(r"__index_level_\d+__")


def read_parquet(path: Path, findings: Findings) -> Iterator[RowBlock]:
    """Return the rows of a file, a few megabytes at a time.

    Raises:
        DataError: The file cannot be read, a column has a type that JSON has nothing for, or
            pyarrow is not installed.
    """
    yield from blocks_of(_parsed(path, findings), path, "row", findings)


def _parsed(path: Path, findings: Findings) -> Iterator[Parsed]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: pyarrow is needed to read .parquet: pip install 'llada-sft[parquet]'"
        ) from None
    number = 0
    try:
        size = path.stat().st_size
        # Buffered: else each column of a row group is read as a whole.
        with parquet.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            names = _names(path, file.schema_arrow, findings)
            plain = _plain_schema(path, file.schema_arrow, names)
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
                for record in _records(batch.select(names).cast(plain, safe=False)):
                    number += 1
                    position = size * number // file.metadata.num_rows
                    yield Parsed(number, record, position)
    except (pa.ArrowException, OSError) as error:
        what = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as .parquet: {what}") from None


def _batch_rows(metadata: Any) -> int:
    """Choose how many rows make some megabytes, where rows are largest."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(1, largest))))


def _records(batch: Any) -> Iterator[dict[str, Any] | Unusable]:
    # Text that is not UTF-8, a year that Python does not know.
    unusable = (ValueError, OverflowError)
    try:
        records = batch.to_pylist()
    except unusable:
        records = []
        for number in range(batch.num_rows):
            try:
                records += batch.slice(number, 1).to_pylist()
            except unusable as error:
                reason = "not_utf8" if isinstance(error, UnicodeDecodeError) else "not_json"
                records.append(Unusable(reason, f"cannot be written as JSON: {error}"))
    yield from records


def _names(path: Path, schema: Any, findings: Findings) -> list[str]:
    """Return the names of the columns, without an index of numbers that pandas has added.

    Raises:
        DataError: Two columns have one name.
    """
    from pyarrow import types

    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: column {twice[0]!r}: is there twice; rename one")
    index = [
        field.name
        for field in schema
        if _INDEX_NAME.fullmatch(field.name) and types.is_integer(field.type)
    ]
    if not index or len(index) == len(schema):
        return list(schema.names)
    findings.note(path, f"left out the index of pandas: {', '.join(map(repr, index))}")
    return [name for name in schema.names if name not in index]


def _plain_schema(path: Path, schema: Any, names: list[str]) -> Any:
    """Return the types that the columns are written as.

    Raises:
        DataError: A column has no such type.
    """
    import pyarrow as pa

    fields = [schema.field(name) for name in names]
    for field in fields:
        if _plain(field.type) is None:
            raise DataError(
                f"{path}: column {field.name!r}: {field.type} cannot become JSON; remove it or"
                " make it a string"
            )
    return pa.schema([field.with_type(_plain(field.type)) for field in fields])


def _plain(kind: Any) -> Any:
    """Return the type whose values can be written as JSON; None if there is none."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_struct(kind):
        fields = [(field.name, _plain(field.type)) for field in kind]
        return None if any(field is None for _, field in fields) else pa.struct(fields)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _plain(kind.value_type)
        return None if inner is None else pa.list_(inner)
    # Python's times know microseconds.
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if types.is_time(kind):
        return pa.time64("us")
    if types.is_float16(kind):
        return pa.float32()
    as_they_are = (
        types.is_null,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_decimal,
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_date,
    )
    return kind if any(is_one(kind) for is_one in as_they_are) else None
