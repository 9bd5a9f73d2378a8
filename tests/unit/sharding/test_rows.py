"""Rows that are left out, files that cannot be read: what is said of them, and where."""

import csv
import gzip
import io
import json
import re
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from llada_sft.data.rows import bad_row
from llada_sft.data.rows.bad_row import BadRow
from llada_sft.errors import DataError
from llada_sft.sharding import Made, blocks, csv_rows, jsonl, make_shards
from llada_sft.sharding.findings import Findings
from tests.unit.sharding.sharding import FORMATS, bad_rows_in, records, rows_in, texts_in


def make(path: Path, content: bytes) -> Made:
    path.write_bytes(content)
    return make_shards([str(path)], path.parent / "out", 1, max_bad_fraction=1)


def error_of(path: Path, content: bytes) -> str:
    """Say what is said of a file, without its folder; nothing may be left."""
    before = set(path.parent.iterdir()) | {path}
    with pytest.raises(DataError) as caught:
        make(path, content)
    assert set(path.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


def naive(text: bytes, max_bytes: int) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Give what is kept, and line and byte of what is not, one line after another."""
    kept, bad, byte = [], [], 0
    for number, line in enumerate(text.split(b"\n"), 1):
        row = line + b"\n"
        start = 3 if byte == 0 and row.startswith(b"\xef\xbb\xbf") else 0
        inner = row[start:].removesuffix(b"\n").removesuffix(b"\r")
        sure = inner[:1] == b"{" and inner[-1:] == b"}" and min(inner) >= 32
        if len(row) > max_bytes:
            bad.append((number, byte))
        elif not row[start:].isspace() and not sure and not _is_json(inner):
            bad.append((number, byte + start))
        elif not row[start:].isspace():
            kept.append(row[start:])
        byte += len(row)
    return kept, bad


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


LINES = st.one_of(
    st.sampled_from(
        [b"", b"\r", b" ", b"\t \r", b"{}", b"{}\r", b"{", b"}", b"{\r", b"}\r", b"\0"]
    ),
    st.sampled_from(
        [b'{"a": 1}', b'{\t"a": 1}', b'{"a\0": 1}', b"[1]", b"5 ", b' {"a": "\xc3\xa9"} ']
    ),
    st.sampled_from([b'{"a": \xff}', b'{"a"', b"a}", b"\xff", b"\xef\xbb\xbf{}", b"\xef\xbb\xbf"]),
    st.integers(0, 70).map(lambda size: b'{"%s": 1}' % (b"x" * size)),
    st.integers(20, 70).map(lambda size: b"x" * size),
)


@settings(max_examples=400, deadline=None)
@example([b"{}" + b" " * 61, b"{}"], 8)
@example([b"x" * 64, b"{}"], 8)
@example([b"x" * 200, b"{}", b"{}" + b" " * 61, b"{}"], 64)
@given(st.lists(LINES, max_size=30), st.sampled_from([8, 16, 32, 64]))
def test_plain_rows_as_if_read_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], block_bytes: int
) -> None:
    text = b"\n".join(rows)
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_bytes(text)
    bad: list[BadRow] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BLOCK_BYTES", block_bytes)
        patch.setattr(jsonl, "MAX_LINE_BYTES", 64)
        # Lines that make one array or object are refused as a whole.
        patch.setattr(jsonl, "_other_json", lambda *_: None)
        patch.setattr(Findings, "add_bad", lambda _, row: bad.append(row))
        blocks = jsonl.read_jsonl(path, Findings(path))
        found = [(bytes(text), ends.tolist()) for text, ends, _ in blocks]
    kept, left_out = naive(text, 64)
    pieces = [
        text[start:end]
        for text, ends in found
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert pieces == kept
    assert [(row.number, row.byte) for row in bad] == left_out


SPECIAL = re.compile(rb"[\0-\x1f]|NaN|Infinity|\\u[dD]")
WORDS = st.sampled_from(
    [b"NaN", b"Infinity", b"\\ud83d", b"\\uDE00", b"\\n", b"N", b"I", b"\xc3\xa9"]
)


@settings(max_examples=400, deadline=None)
@example([b"\\u"], 8)
@given(st.lists(st.one_of(WORDS, st.binary(max_size=9)), max_size=40), st.sampled_from([8, 24]))
def test_no_special_byte_is_missed(words: list[bytes], piece_bytes: int) -> None:
    text = b"".join(words)
    text += b" " * (-len(text) % 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_PIECE_BYTES", piece_bytes)
        found = set(blocks.SpecialBytes().find(np.frombuffer(text, np.uint8)).tolist())
    assert found >= {match.start() for match in SPECIAL.finditer(text)}
    assert found <= {place for place, byte in enumerate(text) if byte < 32 or byte in b"NI\\"}


def test_few_bytes_of_text_are_looked_at_closely() -> None:
    text = rb"The quick brown fox said \"no\" in 1984; Ian, \n\tand others of the New Town. " * 100
    data = np.frombuffer(text[: len(text) // 8 * 8], np.uint8)
    assert len(blocks.SpecialBytes().find(data)) < len(data) / 25


def test_plain_rows_that_are_left_out(tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"a": 2\n\n[1, 2]\nprompt,response\n{"a": "\0"}\n'
    content += b'{"a": 3}\n"a": 4}\n\xff\n{"a": 5'
    made = make(tmp_path / "a.jsonl", content)
    assert texts_in(tmp_path / "out") == [b'{"a": 1}\n[1, 2]\n{"a": 3}\n']
    rows = bad_rows_in(tmp_path / "out")
    file = str(tmp_path / "a.jsonl")
    assert {row["file"] for row in rows} == {file}
    assert [(row["line"], row["byte"], row["reason"], row["message"][:12]) for row in rows] == [
        (2, 9, "not_json", "not JSON: un"),
        (5, 25, "not_json", "not JSON: un"),
        (6, 41, "nul_byte", "a NUL byte a"),
        (8, 61, "not_json", "not JSON: un"),
        (9, 69, "not_utf8", "not UTF-8: b"),
        (10, 71, "not_json", "not JSON: un"),
    ]
    assert made.findings.num_bad == 6
    assert str(made.findings.first[2]) == (
        f"{file}:6 (byte 41): a NUL byte at 7 of the line; the file may be damaged"
    )


def test_a_line_longer_than_training_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (jsonl, bad_row):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 2**21)
    long, longest = b'{"a": "%s"}\n' % (b"x" * 2**21), b'{"a": "%s"}\n' % (b"x" * (2**21 - 10))
    assert len(longest) == 2**21
    made = make(tmp_path / "a.jsonl", b"{}\n" + long + longest + b"{}")
    assert texts_in(tmp_path / "out") == [b"{}\n" + longest + b"{}\n"]
    assert str(made.findings.first[0]) == (
        f"{tmp_path}/a.jsonl:2 (byte 3): a line of 2,097,162 bytes; 2,097,152 are allowed"
    )


def test_json_elements_that_are_left_out(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf \n[{"a": [1.5, 1e400]},\n 7, [], {"a" 1}, {"a": "\\u00e9"}]\n'
    made = make(tmp_path / "a.json", content)
    assert rows_in(tmp_path / "out") == [{"a": "é"}]
    assert [str(row).replace(f"{tmp_path}/", "") for row in made.findings.first] == [
        "a.json: row 1: not JSON: number is infinity when parsed as double",
        "a.json: row 2: a row must be a JSON object, got int",
        "a.json: row 3: a row must be a JSON object, got list",
        "a.json: row 4: not JSON: unexpected character, expected ':' after key",
    ]
    assert bad_rows_in(tmp_path / "out")[1] == {
        "file": f"{tmp_path}/a.json",
        "row": 2,
        "byte": None,
        "reason": "not_an_object",
        "message": "a row must be a JSON object, got int",
    }


def test_numbers_of_json_stay_what_they_are(tmp_path: Path) -> None:
    rows = [{"a": 0.1, "b": -7, "c": 1e-9, "d": 2**63 - 1, "e": True, "f": {"g": [1.0]}}]
    make(tmp_path / "a.json", json.dumps(rows).encode())
    assert rows_in(tmp_path / "out") == rows


def test_csv_rows_that_are_left_out(tmp_path: Path) -> None:
    content = b'p,r\r\n1,2\r\n3\r\n"a\r\nb",4\r\n\r\n5,6,7\r\n"8"x,9\r\n\xff,1\r\nlast,"a ""b"""'
    made = make(tmp_path / "a.csv", content)
    assert rows_in(tmp_path / "out") == [
        {"p": "1", "r": "2"},
        {"p": "a\r\nb", "r": "4"},
        {"p": "last", "r": 'a "b"'},
    ]
    assert [str(row).replace(f"{tmp_path}/", "") for row in made.findings.first] == [
        "a.csv:3: 1 fields; the header line has 2",
        "a.csv:7: 3 fields; the header line has 2",
        "a.csv:8: not CSV: ',' expected after '\"'",
        "a.csv:9: cannot be written as JSON: str is not valid UTF-8: surrogates not allowed",
    ]


def table(**columns: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


def test_what_becomes_of_parquet_types(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901)
    columns = {
        "messages": pa.array([[{"role": "user", "content": "é"}], None]),
        "large": pa.array([["a"], []], pa.large_list(pa.large_string())),
        "pair": pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        "class": pa.array(["x", "y"]).dictionary_encode(),
        "date": pa.array([date(2026, 1, 2), None]),
        "time": pa.array([time(1, 2, 3), None], pa.time64("ns")),
        "naive": pa.array([moment, None], pa.timestamp("ns")),
        "zone": pa.array([moment.replace(tzinfo=UTC), None], pa.timestamp("ns", "UTC")),
        "inner": pa.array([{"at": moment}, None], pa.struct([("at", pa.timestamp("ns"))])),
        "decimal": pa.array([Decimal("1.50"), None]),
        "half": pa.array([1.5, float("nan")], pa.float32()).cast(pa.float16()),
        "unsigned": pa.array([2**64 - 1, 0], pa.uint64()),
        "nothing": pa.nulls(2),
        "bool": pa.array([True, False]),
    }
    make(tmp_path / "a.parquet", table(**columns))
    first, second = rows_in(tmp_path / "out")
    assert first == {
        "messages": [{"role": "user", "content": "é"}],
        "large": ["a"],
        "pair": [1, 2],
        "class": "x",
        "date": "2026-01-02",
        "time": "01:02:03",
        "naive": "2026-01-02T03:04:05.678901",
        "zone": "2026-01-02T03:04:05.678901+00:00",
        "inner": {"at": "2026-01-02T03:04:05.678901"},
        "decimal": 1.5,
        "half": 1.5,
        "unsigned": 2**64 - 1,
        "nothing": None,
        "bool": True,
    }
    assert second["messages"] is second["half"] is second["inner"] is None


def test_parquet_rows_that_are_left_out(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    )
    made = make(tmp_path / "a.parquet", table(text=broken))
    assert rows_in(tmp_path / "out") == [{"text": "a"}, {"text": "c"}]
    (row,) = made.findings.first
    assert str(row).startswith(f"{tmp_path}/a.parquet: row 2: cannot be written as JSON: ")


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (pa.binary(), "binary"),
        (pa.list_(pa.binary()), "list<element: binary>"),
        (pa.struct([("bytes", pa.large_binary())]), "struct<bytes: large_binary>"),
        (pa.map_(pa.string(), pa.int64()), "map<string, int64 ('column')>"),
        (pa.duration("s"), "duration[s]"),
    ],
)
def test_parquet_types_that_have_no_json(tmp_path: Path, kind: Any, shown: str) -> None:
    message = error_of(tmp_path / "a.parquet", table(ok=pa.array(["a"]), column=pa.nulls(1, kind)))
    assert message == (
        f"a.parquet: column 'column': {shown} cannot become JSON; remove it or make it a string"
    )


def test_two_parquet_columns_of_one_name(tmp_path: Path) -> None:
    out = io.BytesIO()
    parquet.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), out)
    message = error_of(tmp_path / "a.parquet", out.getvalue())
    assert message == "a.parquet: column 'a': is there twice; rename one"


ROWS = {name: make(records(500)) for name, make in FORMATS.items()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", ROWS["a.jsonl.gz"][:-9], "a.jsonl.gz: truncated or corrupt .gz: "),
        ("a.jsonl.zst", ROWS["a.jsonl.zst"][:-9], "a.jsonl.zst: truncated or corrupt .zst: "),
        ("a.jsonl", gzip.compress(b"", mtime=0), "a.jsonl: is gzip data, which its name"),
        ("a.jsonl", b"\xff\xfe{\0}\0\n\0", "a.jsonl: is UTF-16; save it as UTF-8"),
        ("a.csv", b"\xff\xfea\0\n\0", "a.csv: is UTF-16; save it as UTF-8"),
        ("a.json", b"\xfe\xff\0[\0]", "a.json: is UTF-16; save it as UTF-8"),
        (
            "a.json",
            b"\na",
            "a.json: is not a JSON array: starts with 'a'; name it .jsonl",
        ),
        ("a.json", b" \n", "a.json: is not a JSON array: is empty; name it .jsonl if each line is"),
        (
            "a.json",
            ROWS["a.json"][:-9],
            "a.json: not JSON after row 499: the file ends within a string",
        ),
        ("a.json", b'[{"a": 1}] []', "a.json: not JSON after row 1: '[' where"),
        ("a.json", b"[]", "--num-shards: 0 rows for 1 shards: there is nothing to write"),
        ("a.csv", b"a,b,a\n", "a.csv:1: the header line has 'a' twice; name each field"),
        ("a.csv", b"a,,\n", "a.csv:1: the header line has a field without a name; name each field"),
        ("a.csv", b'a,"b', "a.csv:1: a quoted field does not end; close its quote"),
        ("a.csv", b'a\n1\n"2\n3\n', "a.csv:3: a quoted field does not end; close its quote"),
        ("a.csv", b"", "--num-shards: 0 rows for 1 shards: there is nothing to write"),
        ("a.parquet", b"", "a.parquet: cannot be read as .parquet: "),
        ("a.parquet", b"PAR1 no", "a.parquet: cannot be read as .parquet: "),
        ("a.parquet", ROWS["a.parquet"][:-9], "a.parquet: cannot be read as .parquet: "),
        ("a.parquet", b"PAR1" + b"\0" * 999 + ROWS["a.parquet"][1003:], "a.parquet: cannot be "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    assert error_of(tmp_path / name, content).startswith(message)


def test_a_csv_field_that_swallows_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = csv.field_size_limit()
    monkeypatch.setattr(csv_rows, "_MAX_CHARACTERS", 100)
    message = error_of(tmp_path / "a.csv", b'a\n1\n"2\n' + b"3\n" * 100)
    assert message == "a.csv:3: a quoted field does not end; close its quote"
    message = error_of(tmp_path / "a.csv", b"a\n1\n" + b"2" * 100)
    assert message == "a.csv:3: a line of more than 100 characters"
    # It is the process's: other readers have what they had.
    assert csv.field_size_limit() == limit


def test_without_pyarrow_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert error_of(tmp_path / "a.parquet", b"") == (
        "a.parquet: pyarrow is needed to read .parquet: pip install 'llada-sft[parquet]'"
    )
