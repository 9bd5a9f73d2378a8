"""The rows of .parquet: a field for each column; lists and structs become JSON, times ISO text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llada_sft.errors import DataError
from llada_sft.sharding.blocks import BadRows, RowBlock
from llada_sft.sharding.json_lines import Parsed, Unusable, blocks_of

_BATCH_BYTES = 2**22
_MAX_BATCH_ROWS = 4096
_READ_BYTES = 1 << 20


def read_parquet(path: Path, bad_rows: BadRows) -> Iterator[RowBlock]:
    """Return the rows of a file, a few megabytes at a time.

    Raises:
        DataError: The file cannot be read, a column has a type that JSON has nothing for, or
            pyarrow is not installed.
    """
    yield from blocks_of(_parsed(path), path, "row", bad_rows)


def _parsed(path: Path) -> Iterator[Parsed]:
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
            plain = _plain_schema(path, file.schema_arrow)
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
                for record in _records(batch.cast(plain, safe=False)):
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
                records.append(Unusable("not_json", f"cannot be written as JSON: {error}"))
    yield from records


def _plain_schema(path: Path, schema: Any) -> Any:
    """Return the types that the columns are written as.

    Raises:
        DataError: A column has no such type, or two have one name.
    """
    import pyarrow as pa

    for field in schema:
        where = f"{path}: column {field.name!r}"
        if schema.names.count(field.name) > 1:
            raise DataError(f"{where}: is there twice; rename one")
        if _plain(field.type) is None:
            raise DataError(
                f"{where}: {field.type} cannot become JSON; remove it or make it a string"
            )
    return pa.schema([field.with_type(_plain(field.type)) for field in schema])


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
