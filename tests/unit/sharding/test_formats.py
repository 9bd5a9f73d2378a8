"""The same rows from files of every format; files that are not quite what their name says."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from llada_sft.data.examples.parse import parse_row
from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.rows.row import Row
from llada_sft.errors import DataError
from llada_sft.sharding import json_scan, make_shards, report
from tests.unit.sharding.sharding import bad_rows_in, texts_in

Record = dict[str, Any]


def made_of(folder: Path, name: str, content: bytes) -> tuple[bytes, list[str]]:
    """Return the text of the one shard that a file gives, and what is said of the file."""
    path = folder / name
    path.write_bytes(content)
    out = folder / f"{name} out"
    made = make_shards([str(path)], out, 1, max_bad_fraction=1)
    (text,) = texts_in(out)
    lines = report(made, out).replace(f"{folder}/", "").splitlines()[1:]
    return text, [line for line in lines if not line.endswith("the first:")]


def error_of(folder: Path, name: str, content: bytes) -> str:
    """Return the line that refuses a file; nothing may be left."""
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        make_shards([str(path)], folder / "out", 1)
    assert list(folder.iterdir()) == [path]
    return str(caught.value).replace(f"{folder}/", "")


def _jsonl(rows: list[Record]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _indented(rows: list[Record]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def _in_object(rows: list[Record]) -> bytes:
    return json.dumps({"version": 1, "data": rows}, ensure_ascii=False).encode()


def _csv(rows: list[Record], **form: Any) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), **form)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _parquet(rows: list[Record]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, row_group_size=3)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[Record]], bytes]] = {
    "a.jsonl": _jsonl,
    "b.ndjson": _jsonl,
    "c.JSONL": _jsonl,
    "d.jsonl.gz": lambda rows: gzip.compress(_jsonl(rows), mtime=0),
    "e.ndjson.gz": lambda rows: gzip.compress(_jsonl(rows), mtime=0),
    "f.json": _indented,
    "g.JSON": _in_object,
    "h.parquet": _parquet,
}
STRINGS_ONLY: dict[str, Callable[[list[Record]], bytes]] = {
    "i.csv": _csv,
    "j.CSV": lambda rows: b"\xef\xbb\xbf" + _csv(rows, delimiter=";", quoting=csv.QUOTE_ALL),
    "k.csv": lambda rows: _csv(rows, delimiter="\t"),
    "l.tsv": lambda rows: _csv(rows, delimiter="\t"),
}
VALUES = [
    ["é ü 漢字 🙂 \u2028", "", 'a "quote" \\ back'],
    [0, -1, 2**63 - 1, -(2**63)],
    [0.1, 1.0, -0.0, 1e22, 1e-7, 5e-324, 1e16, 123456789012345680.0, 1.7976931348623157e308],
    [True, False, None],
    [[1, 2], [], None],
    [[{"role": "user", "content": "é"}], []],
    [{"in": {"n": 1.5, "s": None}}, {"in": {"n": -3.0, "s": "x"}}],
    [None],
]
TYPED = [
    {f"field {i}": values[row % len(values)] for i, values in enumerate(VALUES)} for row in range(9)
]
STRINGS = [
    {"prompt": text, "antwort für": f"{i}\r\n{text}"}
    for i, text in enumerate(
        ["x", 'a,b;c\t"d"', "two\nlines", "é 漢字 🙂", "NaN", "\\ud83d", "null"]
    )
]


@pytest.mark.parametrize("name", WRITERS)
def test_one_dataset_gives_the_same_bytes_from_every_format(tmp_path: Path, name: str) -> None:
    assert made_of(tmp_path, name, WRITERS[name](TYPED))[0] == _jsonl(TYPED)


@pytest.mark.parametrize("name", WRITERS | STRINGS_ONLY)
def test_strings_give_the_same_bytes_from_every_format(tmp_path: Path, name: str) -> None:
    content = (WRITERS | STRINGS_ONLY)[name](STRINGS)
    assert made_of(tmp_path, name, content)[0] == _jsonl(STRINGS)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False, allow_infinity=False),
    NAMES,
)
NESTED = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(NAMES, SCALARS, max_size=2)
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(NAMES, NESTED, max_size=4), min_size=1, max_size=8),
    indent=st.sampled_from([None, 1]),
    is_ascii=st.booleans(),
    piece=st.sampled_from([1, 7, 2**18]),
)
def test_whatever_the_rows_json_keeps_their_values(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Record],
    indent: int | None,
    is_ascii: bool,
    piece: int,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    text = json.dumps(rows, indent=indent, ensure_ascii=is_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "_PIECE_BYTES", piece)
        path = folder / "a.json"
        path.write_bytes(text)
        made = make_shards([str(path)], folder / "out", 1)
    assert made.num_rows == len(rows)
    found = [json.loads(line) for line in texts_in(folder / "out")[0].split(b"\n")[:-1]]
    assert found == rows


# A row, as text of JSON; what its line is; None if the row is bad.
ODD_ROWS: dict[str, tuple[bytes, bytes | None]] = {
    "NaN": (b'{"a":NaN}', b'{"a":null}'),
    "infinity": (b'{"a":[Infinity,-Infinity,1.50]}', b'{"a":[null,null,1.5]}'),
    "NaN in a string": (b'{"a":"NaN -Infinity"}', b'{"a":"NaN -Infinity"}'),
    "NaN and a string": (b'{"NaN":NaN,"b":"\\"NaN"}', b'{"NaN":null,"b":"\\"NaN"}'),
    "NaN and a long integer": (
        b'{"a":NaN,"b":1180591620717411303424}',
        b'{"a":null,"b":1180591620717411303424}',
    ),
    "NaN of something else": (b'{"a":NaNa}', None),
    "NaN and a number too large": (b'{"a":NaN,"b":1e400}', None),
    "a pair": ('{"a":"🙂"}'.encode(), '{"a":"🙂"}'.encode()),
    "half a pair": (b'{"a":"\\ud83d bad"}', None),
    "the other half": (b'{"a":"\\uDE00"}', None),
    "half a pair in a name": (b'{"a\\udbff":1}', None),
    "two first halves": (b'{"a":"\\ud83d\\ud83d"}', None),
    "half a pair and NaN": (b'{"a":"\\ud83d","b":NaN}', None),
    "a backslash before ud83d": (b'{"a":"\\\\ud83d"}', b'{"a":"\\\\ud83d"}'),
    "2**70": (b'{"a":1180591620717411303424}', b'{"a":1180591620717411303424}'),
    "-2**63-1": (b'{"a":[-9223372036854775809]}', b'{"a":[-9223372036854775809]}'),
    "2**64-1": (b'{"a":18446744073709551615}', b'{"a":18446744073709551615}'),
    "300 digits": (b'{"a":1%s}' % (b"0" * 299), b'{"a":1%s}' % (b"0" * 299)),
    "digits in a string": (b'{"a":"1180591620717411303424"}', b'{"a":"1180591620717411303424"}'),
    "null": (b'{"a":null,"b":[null]}', b'{"a":null,"b":[null]}'),
    "a control byte": (b'{"a":"\t"}', None),
    "a NUL byte": (b'{"a":"\0"}', None),
}


@pytest.mark.parametrize("case", ODD_ROWS)
def test_odd_rows_are_the_same_of_json_and_jsonl(tmp_path: Path, case: str) -> None:
    row, expected = ODD_ROWS[case]
    good = b'{"good":1}'
    jsonl, _ = made_of(tmp_path, "a.jsonl", good + b"\n" + row + b"\n")
    array, _ = made_of(tmp_path, "a.json", b"[" + good + b",\n" + row + b"]")
    assert jsonl == array == good + b"\n" + (b"" if expected is None else expected + b"\n")
    if expected is None:
        line, element = (bad_rows_in(tmp_path / f"a.{kind} out")[0] for kind in ("jsonl", "json"))
        assert (line["reason"], line["message"]) == (element["reason"], element["message"])
        assert (line["line"], line["byte"], element["row"]) == (2, 11, 2)


@pytest.mark.parametrize("case", [case for case in ODD_ROWS if case.startswith(("half", "two"))])
def test_the_message_is_that_of_training(tmp_path: Path, case: str) -> None:
    row = ODD_ROWS[case][0]
    made_of(tmp_path, "a.jsonl", b"{}\n" + row + b"\n")
    (bad,) = bad_rows_in(tmp_path / "a.jsonl out")
    with pytest.raises(BadRowError) as caught:
        parse_row(Row("a", 2, 3, row, "a"))
    assert str(caught.value).endswith(bad["message"])


def test_pairs_that_are_escaped_are_moved_as_they_are(tmp_path: Path) -> None:
    text = b'{"a": "\\ud83d\\ude00", "b": "\\uD55C"}\r\n'
    assert made_of(tmp_path, "a.jsonl", text) == (text, [])


@pytest.mark.parametrize("offset", range(20))
def test_a_long_integer_is_noticed_wherever_it_is(tmp_path: Path, offset: int) -> None:
    row = b'{"%s":[%d,9999999999999999999,99999999999999999999]}' % (b"x" * offset, -(2**63) - 1)
    assert made_of(tmp_path, "a.json", b"[" + row + b"]") == (row + b"\n", [])


def test_odd_values_of_parquet(tmp_path: Path) -> None:
    columns = {
        "float": pa.array([float("nan"), float("-inf"), 1.5]),
        "in list": pa.array([[float("nan")], None, [float("inf"), 2.0]]),
        "unsigned": pa.array([2**64 - 1, 2**63, None], pa.uint64()),
        "whole": pa.array([Decimal(2**70), Decimal(-5), None], pa.decimal128(38, 0)),
        "money": pa.array([Decimal("1.50"), Decimal("12345678901234567890.25"), Decimal(3)]),
        "tiny": pa.array([Decimal("0.000000001"), Decimal("0E-9"), None], pa.decimal128(20, 9)),
    }
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    text, said = made_of(tmp_path, "a.parquet", out.getvalue())
    assert said == []
    assert text.decode().splitlines() == [
        '{"float":null,"in list":[null],"unsigned":18446744073709551615,'
        '"whole":1180591620717411303424,"money":1.5,"tiny":1e-9}',
        '{"float":null,"in list":null,"unsigned":9223372036854775808,'
        '"whole":-5,"money":12345678901234567890.25,"tiny":0.0}',
        '{"float":1.5,"in list":[null,2.0],"unsigned":null,"whole":null,"money":3.0,"tiny":null}',
    ]


ARRAY = b'[{"a": 1}, {"a": 2}]'
AB = b'{"a":"1","b":"2"}\n'
INDEX_LEFT_OUT = "a.csv: left out the index: the first column counts the rows"


@pytest.mark.parametrize(
    ("name", "content", "text", "said"),
    [
        (
            "a.json",
            b'{"version": "1.1", "data": ' + ARRAY + b', "info": {"tags": ["x"]}, "none": []}',
            b'{"a":1}\n{"a":2}\n',
            ["a.json: the rows are those of 'data'; not read: 'version', 'info', 'none'"],
        ),
        ("a.json", b'\xef\xbb\xbf{\n "rows":\n [\n{"a": 1}\n]\n}\n', b'{"a":1}\n', []),
        (
            "a.json",
            b'{"rows": [{"b": 1}], "messages": [{"role": "user"}]}',
            b'{"b":1}\n',
            ["a.json: the rows are those of 'rows'; not read: 'messages'"],
        ),
        ("a.json", b'[{"a": "]}\\"[{"}, {"b": "\\\\"}]', b'{"a":"]}\\"[{"}\n{"b":"\\\\"}\n', []),
        ("a.json", b'[{"a": 1, "b": 2, "a": 3}]', b'{"a":3,"b":2}\n', []),
        ("a.json", b'[{"a": 1E3, "b": -0, "c": 1.10}]', b'{"a":1000.0,"b":0,"c":1.1}\n', []),
        ("a.jsonl", ARRAY + b"\n" + ARRAY, ARRAY + b"\n" + ARRAY + b"\n", []),
        ("a.jsonl", b'{"a": 1}\r\n{"a": NaN}\r\n', b'{"a": 1}\r\n{"a":null}\n', []),
        ("a.csv", b"a;b\n1;2\n", AB, ["a.csv: its fields are separated by ';'"]),
        ("a.csv", b"a\tb\n1\t2\n", AB, ["a.csv: its fields are separated by tabs"]),
        ("a.csv", b'a;b,"c;d"\n1,2\n', b'{"a;b":"1","c;d":"2"}\n', []),
        ("a.csv", b"a\n1;2\n", b'{"a":"1;2"}\n', []),
        ("a.TSV", b"a\tb,c\n1\t2,3\n", b'{"a":"1","b,c":"2,3"}\n', []),
        ("a.tsv", b"a\n1\n", b'{"a":"1"}\n', []),
        ("a.csv", b",p\n0,x\n1,y\n", b'{"p":"x"}\n{"p":"y"}\n', [INDEX_LEFT_OUT]),
        ("a.csv", b"Unnamed: 0,p\n0,x\n", b'{"p":"x"}\n', [INDEX_LEFT_OUT]),
        (
            "a.csv",
            b",Unnamed: 0.1,Unnamed: 0,p\n0,0,0,x\n1,1,1,y\n",
            b'{"p":"x"}\n{"p":"y"}\n',
            ["a.csv: left out the index: the first columns count the rows"],
        ),
        (
            "a.csv",
            b",p\n0,x\n1,y,z\n2,z\n",
            b'{"p":"x"}\n{"p":"z"}\n',
            [INDEX_LEFT_OUT, "a.csv:3: 3 fields; the header line has 2"],
        ),
        ("a.csv", b"Unnamed: 0\n7\n", b'{"Unnamed: 0":"7"}\n', []),
        ("a.csv", b"p,Unnamed: 0\nx,7\n", b'{"p":"x","Unnamed: 0":"7"}\n', []),
    ],
)
def test_files_that_are_read_as_they_are_meant(
    tmp_path: Path, name: str, content: bytes, text: bytes, said: list[str]
) -> None:
    assert made_of(tmp_path, name, content) == (text, said)


TABLE = 'not rows; write it with pandas: df.to_json("new.jsonl", orient="records", lines=True)'
ARRAY_LINES = "is a JSON array over several lines, not one object on each line;"
OBJECT_LINES = (
    "has objects over several lines, not one object on each line; write each on one line, as"
    "  jq -c .  does"
)
INDEX = "should count the rows from 0, as an index of pandas, got"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'[\n{"prompt": "q0"},\n{"prompt": "q1"}\n]\n',
            f"a.jsonl: {ARRAY_LINES} name it .json",
        ),
        (
            "a.jsonl",
            b'\xef\xbb\xbf\n [{"a": 1},\n{"a": 2}]',
            f"a.jsonl: {ARRAY_LINES} name it .json",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(b'[\n{"a": 1}\n]\n', mtime=0),
            f"a.jsonl.gz: {ARRAY_LINES} decompress it and name it .json",
        ),
        (
            "a.jsonl",
            ARRAY,
            "a.jsonl: is a JSON array on one line, not one object on each line; name it .json",
        ),
        (
            "a.jsonl",
            b'[{"a": "%s"},\n{}]' % (b"x" * 3_000_000),
            f"a.jsonl: {ARRAY_LINES} name it .json",
        ),
        ("a.NDJSON", json.dumps({"a": 1, "b": [2]}, indent=2).encode() * 2, OBJECT_LINES),
        ("a.jsonl", b'{"a": 1,\n "b": 2}\n', OBJECT_LINES),
        (
            "a.json",
            b'{"prompt": {"0": "q", "1": "r"}, "response": {"0": "a", "1": "b"}}',
            f"a.json: is a table by columns or index ('prompt', 'response'), {TABLE}",
        ),
        (
            "a.json",
            b'{"prompt": ["q"], "n": [1], "c": [null], "d": [2], "e": [3], "f": [4]}',
            f"a.json: is a table by columns or index ('prompt', 'n', 'c', 'd', 'e', ...), {TABLE}",
        ),
        (
            "a.json",
            b'{"columns": ["p"], "index": [0], "data": [["q"]]}',
            f"a.json: is a table by columns or index ('columns', 'index', 'data'), {TABLE}",
        ),
        (
            "a.json",
            b'{"0": {"p": "q"}, "1": {"p": "r"}}',
            f"a.json: is a table by columns or index ('0', '1'), {TABLE}",
        ),
        (
            "a.json",
            b'{"train": [{"a": 1}], "test": [{"a": 2}]}',
            "a.json: has more than one list ('train', 'test'); keep only that of the rows",
        ),
        (
            "a.json",
            b'{"tags": ["x"], "data": [{"a": 1}]}',
            f"a.json: is a table by columns or index ('tags', 'data'), {TABLE}",
        ),
        (
            "a.json",
            b'{"messages": [{"role": "user", "content": "q"}]}',
            "a.json: is an object without a list of objects; write rows as [{...}, {...}]",
        ),
        (
            "a.json",
            b'{"a": "1"}\n',
            "a.json: is an object without a list of objects; write rows as [{...}, {...}]",
        ),
        (
            "a.json",
            b' {"a": 1}\n{"a": 2}\n',
            "a.json: has one object on each line, not one JSON array; name it .jsonl",
        ),
        (
            "a.json",
            b'{\n "a": 1\n}\n{\n "a": 2\n}\n',
            "a.json: has several objects, not one array; name it .jsonl if each is on one line,"
            " else make it an array with  jq -s .",
        ),
        (
            "a.json",
            b"5",
            "a.json: is not a JSON array: starts with '5'; name it .jsonl if each line is a row",
        ),
        ("a.json", b'{"a" 1}', "a.json: not JSON after row 0: '1' where ':' should be"),
        ("a.json", b"{a: 1}", "a.json: not JSON after row 0: 'a' where '\"' should be"),
        ("a.json", b'[{"a": 1},]', "a.json: not JSON after row 1: ']' where a value should be"),
        (
            "a.json",
            b'[{"a": 1} {"a": 2}]',
            "a.json: not JSON after row 1: '{' where ',' or ']' should be",
        ),
        (
            "a.json",
            b'[{"a": 1}, {"a": 1}',
            "a.json: not JSON after row 2: the end of the file where ',' or ']' should be",
        ),
        (
            "a.json",
            b'[{"a": [1',
            "a.json: not JSON after row 0: the file ends within a list or an object",
        ),
        ("a.json", b'[{"a": "\\', "a.json: not JSON after row 0: the file ends within a string"),
        ("a.json", b"[{}] x", "a.json: not JSON after row 1: 'x' where the file should end"),
        (
            "a.csv",
            b"a;b\tc\n1;2\t3\n",
            "a.csv:1: the header line has ';' and tabs; separate fields by commas",
        ),
        ("a.tsv", b"a,b\n1,2\n", "a.tsv:1: the header line has commas and no tab; name it .csv"),
        (
            "a.csv",
            b",p\n5,x\n",
            f"a.csv:2: the first column, which has no name, {INDEX} '5'; rename or remove it",
        ),
        (
            "a.csv",
            b"Unnamed: 0,p\n0,x\nid,y\n",
            f"a.csv:3: column 'Unnamed: 0' {INDEX} 'id'; rename or remove it",
        ),
        ("a.csv", b"p,,q\n", "a.csv:1: the header line has a field without a name; name each"),
        (
            "a.JSONL.GZ",
            gzip.compress(b"{}", mtime=0),
            "a.JSONL.GZ: is gzip data, which its name does not",
        ),
    ],
)
def test_a_file_of_another_kind_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    found = error_of(tmp_path, name, content)
    where = "" if message.startswith(name) else f"{name}: "
    assert found.startswith(where + message)
    assert "\n" not in found


def test_lines_that_only_look_like_an_array_are_bad_rows(tmp_path: Path) -> None:
    content = b'[{"a": 1\n{"a": 2}\n{"a": 3},\n'
    text, said = made_of(tmp_path, "a.jsonl", content)
    assert text == b'{"a": 2}\n'
    assert [line.partition(": ")[0] for line in said] == [
        "a.jsonl:1 (byte 0)",
        "a.jsonl:3 (byte 18)",
    ]


@pytest.mark.parametrize(
    ("index", "said", "fields"),
    [
        ([7, 3], ["a.parquet: left out the index of pandas: '__index_level_0__'"], ["p"]),
        (["x", "y"], [], ["p", "__index_level_0__"]),
    ],
)
def test_the_index_of_pandas_in_parquet(
    tmp_path: Path, index: list[Any], said: list[str], fields: list[str]
) -> None:
    out = io.BytesIO()
    parquet.write_table(pa.table({"p": ["q", "r"], "__index_level_0__": index}), out)
    text, found = made_of(tmp_path, "a.parquet", out.getvalue())
    assert found == said
    assert [list(json.loads(line)) for line in text.splitlines()] == [fields, fields]


def test_a_row_of_json_longer_than_training_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_scan, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_scan, "_PIECE_BYTES", 64)
    long = b'{"a": "%s"}' % (b"x" * 5000)
    text, said = made_of(tmp_path, "a.json", b'[{"b": 1}, ' + long + b', {"c": 2}]')
    assert text == b'{"b":1}\n{"c":2}\n'
    assert said == [f"a.json: row 2: a line of {len(long):,} bytes; 67,108,864 are allowed"]
