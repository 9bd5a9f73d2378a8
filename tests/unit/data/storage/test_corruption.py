"""Every way in which shards may be damaged, each through what a rank of a run does with them.

A row that cannot be used is one line of the quarantine, with its file, line, byte and reason, and
every good row beside it is delivered once per epoch. A file that cannot be used is one clear line.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from backports import zstd

from llada_sft.data.examples.quarantine import REMEDY
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.rows.count import count_rows
from llada_sft.errors import DataError
from tests.unit.data import huge_line
from tests.unit.data.reading import KINDS, ROOT, Found, good, quarantined, read, steps_of, write

MARK = b"\xef\xbb\xbf"


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr("llada_sft.data.examples.encode.load_tokenizer", lambda *_: tokenizer)


class BadRow(NamedTuple):
    what: str
    text: bytes
    reason: str
    message: str


VALUE = "not JSON: unexpected character, expected a JSON value"
BAD_ROWS = [
    BadRow("cut short", b'{"prompt": "a", ', "not_json", "not JSON: unexpected end of data"),
    BadRow("not JSON", b"prompt,response", "not_json", VALUE),
    BadRow(
        "NaN",
        b'{"prompt": NaN, "response": "a"}',
        "bad_record",
        "'prompt' must be a string, got null",
    ),
    BadRow("NaN and more", b'{"prompt": NaN]', "not_json", VALUE),
    BadRow("two records", b"{} {}", "not_json", "not JSON: unexpected content after document"),
    BadRow("deeply nested", b"[" * 2000, "not_json", "not JSON: depth limit exceeded"),
    # One that begins a file is fine; files that were put together have it in their middle.
    BadRow(
        "mark",
        MARK + good("ab"),
        "not_json",
        "not JSON: UTF-8 byte order mark (BOM) is not supported",
    ),
    BadRow("NUL", b"{} \0", "nul_byte", "a NUL byte at 3 of the line; the file may be damaged"),
    BadRow("NULs", b"\0" * 99, "nul_byte", "a NUL byte at 0 of the line; the file may be damaged"),
    BadRow("Latin-1", b'"\xff"', "not_utf8", "not UTF-8: byte 0xff at 1 of the line"),
    BadRow("cut in a letter", b'"a\xc3', "not_utf8", "not UTF-8: byte 0xc3 at 2 of the line"),
    # Half of a surrogate pair is no text: neither its bytes nor its escape.
    BadRow("half a pair", b'"\xed\xa0\x80"', "not_utf8", "not UTF-8: byte 0xed at 1 of the line"),
    BadRow("first half", rb'{"a": "\ud800"}', "not_json", "not JSON: no low surrogate in string"),
    BadRow(
        "second half", rb'{"a": "\udc00"}', "not_json", "not JSON: invalid high surrogate in string"
    ),
    BadRow("array", b"[1]", "bad_record", "a record must be a JSON object, got list"),
    BadRow("string", b'"text"', "bad_record", "a record must be a JSON object, got str"),
    BadRow("null", b"null", "bad_record", "a record must be a JSON object, got null"),
    BadRow(
        "no response",
        b'{"prompt": "a"}',
        "bad_record",
        "not prompt_response: no 'response'; its fields are 'prompt'",
    ),
    BadRow(
        "number",
        b'{"prompt": 1, "response": "a"}',
        "bad_record",
        "'prompt' must be a string, got int",
    ),
    BadRow("empty", b'{"prompt": "a", "response": ""}', "bad_record", "'response' is empty"),
    BadRow("blanks", rb'{"prompt": "a", "response": " \n"}', "bad_record", "'response' is empty"),
    BadRow(
        "empty chat",
        b'{"messages": []}',
        "bad_record",
        "'messages' must be a list of turns, got an empty list",
    ),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda bad: bad.what)
def test_a_bad_row_is_set_aside_and_those_beside_it_are_read(
    tmp_path: Path, bad: BadRow, kind: str
) -> None:
    lines = [good("abc"), bad.text, good("def"), b""]
    write(tmp_path, {"a.jsonl": good("fed"), f"b{kind}": b"\n".join(lines), "c.jsonl": good("ba")})
    found = read(tmp_path)
    file, byte = f"b{kind}", len(lines[0]) + 1
    assert found.error is None
    assert found.quarantine == [(file, 2, byte, bad.reason, bad.message)]
    rows = [("a.jsonl", 1, "def"), (file, 1, "cba"), (file, 3, "fed"), ("c.jsonl", 1, "ab")]
    assert found.epochs == [rows, rows]
    assert found.counts == RowCounts(rows=5, bad={bad.reason: 1})
    # Where none is allowed, the same is said in one line.
    path = tmp_path / "train" / file
    error = read(tmp_path, max_bad_fraction=0.0).error
    assert error == f"{path}:2 (byte {byte}): {bad.message}; {REMEDY}"


AB, CD = good("ab"), good("cd")
BOTH = [(1, "ba"), (2, "dc")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(MARK + AB + b"\n" + CD + b"\n", BOTH, id="byte order mark"),
        pytest.param(AB + b"\r\n" + CD + b"\r\n", BOTH, id="CRLF"),
        pytest.param(b"\n \t\n" + AB + b"\n\r\n\n" + CD, [(3, "ba"), (6, "dc")], id="blank lines"),
        pytest.param(AB + b"\n" + CD, BOTH, id="no final newline"),
        pytest.param(b"", [], id="empty"),
        pytest.param(b"\n\n \n", [], id="nothing but blanks"),
        # The tokenizer knows neither: what it does not know is a blank to it.
        pytest.param(b'{"prompt": "1", "response": "2"}', [(1, " ")], id="numbers as strings"),
        pytest.param(rb'{"prompt": "a", "response": "\ud83d\ude00"}', [(1, " ")], id="whole pair"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_only_untidy_is_read(
    tmp_path: Path, text: bytes, expected: list[tuple[int, str]], kind: str
) -> None:
    write(tmp_path, {f"a{kind}": text})
    found = read(tmp_path, max_bad_fraction=0.0)
    rows = [(f"a{kind}", *one) for one in expected]
    assert found == Found([rows, rows], RowCounts(rows=len(rows)), [], None)


@pytest.mark.parametrize(
    ("text", "entries", "rows"),
    [
        pytest.param(
            MARK + AB + b"\r\n\r\n \r\n{\r\n" + CD,
            [(4, 3 + 44 + 2 + 3, "not_json")],
            [(1, "ba"), (5, "dc")],
            id="untidy, too",
        ),
        pytest.param(
            b"[\n" + AB + b",\n" + CD + b"\n]\n",
            [(1, 0, "not_json"), (2, 2, "not_json"), (4, 2 + 44 + 43, "not_json")],
            [(3, "dc")],
            id="one JSON array",
        ),
        pytest.param(AB + b"\r" + CD + b"\r", [(1, 0, "not_json")], [], id="CR alone"),
        pytest.param(
            (AB + b"\n").decode().encode("utf-16"),
            [(1, 0, "not_utf8"), (2, 2 + 84 + 1, "nul_byte")],
            [],
            id="UTF-16",
        ),
        pytest.param(AB + b"\n" + CD[:-5], [(2, 43, "not_json")], [(1, "ba")], id="cut off"),
        pytest.param(MARK, [(1, 0, "not_json")], [], id="a mark alone"),
    ],
)
def test_a_file_of_several_bad_rows(
    tmp_path: Path,
    text: bytes,
    entries: list[tuple[int, int, str]],
    rows: list[tuple[int, str]],
) -> None:
    write(tmp_path, {"a.jsonl": text, "b.jsonl": good("e")})
    found = read(tmp_path)
    assert [one[:4] for one in found.quarantine] == [("a.jsonl", *entry) for entry in entries]
    expected = [*(("a.jsonl", *row) for row in rows), ("b.jsonl", 1, "e")]
    assert found.epochs == [expected, expected]
    assert found.counts.rows == len(entries) + len(expected)


def test_another_schema_in_the_seventh_file(tmp_path: Path) -> None:
    words = ["ab", "cd", "ef"]
    files = {f"{number}.jsonl": b"\n".join(map(good, words)) for number in range(1, 9)}
    drifted = b'{"problem": "a", "solution": "b"}\n'
    folder = write(tmp_path, files | {"7.jsonl": drifted * 3})
    found = read(tmp_path)
    message = (
        "no known format: its fields are 'problem', 'solution'; "
        "name yours in data.fields, or read them in a hook"
    )
    bad = [("7.jsonl", n + 1, n * len(drifted), "bad_record", message) for n in range(3)]
    assert found.quarantine == bad
    expected = [
        (file, line, word[::-1])
        for file in sorted(files)
        for line, word in enumerate(words, start=1)
        if file != "7.jsonl"
    ]
    assert found.epochs == [expected, expected]
    error = read(tmp_path, max_bad_fraction=0.1).error
    assert error is not None
    first, *shown = error.splitlines()
    assert first.endswith(
        "3 of 24 rows are bad, data.max_bad_fraction allows 0.1; llada-sft check finds them all;"
        " the first:"
    )
    wheres = (f"{folder}/7.jsonl:{line} (byte {byte})" for _, line, byte, *_ in bad)
    assert sorted(shown) == [f"{where}: {message}" for where in wheres]


@pytest.mark.parametrize(
    ("policy", "response", "counts"),
    [
        ("skip", None, RowCounts(rows=2, skipped=1)),
        ("clip_response", "ab" * 9, RowCounts(rows=2, clipped=1)),
        ("clip_prompt", "ab" * 15 + "c", RowCounts(rows=2, clipped=1)),
    ],
)
def test_a_response_longer_than_the_maximum(
    tmp_path: Path, policy: str, response: str | None, counts: RowCounts
) -> None:
    # The prompt has 13 tokens, and EOS follows: 18 of 32 are left.
    long = b'{"prompt": "reverse a", "response": "%sc"}\n' % (b"ab" * 20)
    write(tmp_path, {"a.jsonl": long + CD})
    found = read(tmp_path, on_too_long=policy, max_bad_fraction=0.0)
    cut = [] if response is None else [("a.jsonl", 1, response)]
    rows = [*cut, ("a.jsonl", 2, "dc")]
    assert found == Found([rows, rows], counts, [], None)


TEXT = b"".join(good("abc") + b"%d\n" % number for number in range(3000))
GZ, ZST = gzip.compress(TEXT, mtime=0), zstd.compress(TEXT)
ENDED = "Compressed file ended before the end-of-stream marker was reached; copy it again"
NAMELESS = ", which its name does not say; name it"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.jsonl", GZ, f"is gzip data{NAMELESS} .gz"),
        ("b.jsonl", ZST, f"is zstd data{NAMELESS} .zst"),
        ("b.jsonl.gz", TEXT, f"is not compressed{NAMELESS} .jsonl"),
        ("b.jsonl.zst", b"{}", f"is not compressed{NAMELESS} .jsonl"),
        ("b.jsonl.zst", GZ, f"is gzip data{NAMELESS} .gz"),
        ("b.jsonl.gz", GZ[:-100], f"truncated or corrupt .gz: {ENDED}"),
        ("b.jsonl.gz", GZ[:-1], f"truncated or corrupt .gz: {ENDED}"),
        ("b.jsonl.gz", GZ[:7], f"truncated or corrupt .gz: {ENDED}"),
        ("b.jsonl.gz", GZ[:-8] + b"abcd" + GZ[-4:], "truncated or corrupt .gz: CRC check"),
        ("b.jsonl.gz", GZ[:300] + b"\xff" * 60 + GZ[360:], "truncated or corrupt .gz: "),
        ("b.jsonl.zst", ZST[:-100], f"truncated or corrupt .zst: {ENDED}"),
        ("b.jsonl.zst", ZST[:-1], f"truncated or corrupt .zst: {ENDED}"),
        ("b.jsonl.zst", ZST[:5], f"truncated or corrupt .zst: {ENDED}"),
        ("b.jsonl.zst", ZST + b"garbage", "truncated or corrupt .zst: Unable to decompress"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_or_not_whole(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, {"a.jsonl": good("ab")}) / name
    path.write_bytes(content)
    found = read(tmp_path)
    assert found.epochs == [[], []]
    with pytest.raises(DataError) as caught:
        count_rows([path])
    for error in (found.error, str(caught.value)):
        assert error is not None
        assert error.startswith(f"{path}: {message}")
        assert "\n" not in error
    assert [one for one in (tmp_path / "cache").rglob("text/*") if one.is_file()] == []


def _folder(odd: Path) -> None:
    odd.mkdir()


def _dangling_link(odd: Path) -> None:
    odd.symlink_to("nowhere")


def _pipe(odd: Path) -> None:
    os.mkfifo(odd)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_folder, "is a folder, not a shard; move it away"),
        (_dangling_link, "is a link to nowhere, which is not there; restore or remove it"),
        (_pipe, "is not a regular file; move it away"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/*.jsonl*", "/b.jsonl.gz"])
def test_what_is_no_file_among_the_shards(
    tmp_path: Path, make: Callable[[Path], None], message: str, pattern: str
) -> None:
    odd = write(tmp_path, {"a.jsonl": good("ab")}) / "b.jsonl.gz"
    make(odd)
    if make is _folder and pattern == "/b.jsonl.gz":
        # Then it is the folder of the shards.
        message = "no .jsonl, .jsonl.gz, .jsonl.zst files in this folder"
    found = read(tmp_path, train=f"{tmp_path}/train{pattern}")
    assert found == Found([[], []], RowCounts(), [], f"{odd}: {message}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_permission(
    public_folder: Path, without_privileges: Callable[[], AbstractContextManager[None]], kind: str
) -> None:
    path = write(public_folder, {"a.jsonl": good("ab"), f"b{kind}": good("cd")}) / f"b{kind}"
    path.chmod(0)
    with without_privileges():
        found = read(public_folder)
    assert found == Found([[], []], RowCounts(), [], f"{path}: cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("sub", "sub"),
        ("sub/b.jsonl", "sub/b.jsonl"),
        # A glob would find what else there is, and say nothing.
        ("sub/*.jsonl", "sub/*.jsonl"),
        ("*/b.jsonl", "sub"),
        ("**/*.jsonl", "sub"),
    ],
)
def test_a_folder_without_permission(
    public_folder: Path,
    without_privileges: Callable[[], AbstractContextManager[None]],
    pattern: str,
    named: str,
) -> None:
    folder = write(public_folder, {"a.jsonl": AB})
    for name in ("sub", "other"):
        (folder / name).mkdir()
        (folder / name / "b.jsonl").write_bytes(CD)
    (folder / "sub").chmod(0)
    with without_privileges():
        found = read(public_folder, train=f"{folder}/{pattern}")
    assert found.error == f"{folder}/{named}: cannot be read: Permission denied"


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.jsonl": AB, "é.jsonl": CD})
    assert read(tmp_path).error is None
    (folder / os.fsdecode(b"\xff.jsonl")).write_bytes(CD)
    assert read(tmp_path).error == rf"{folder}/\xff.jsonl: is not a UTF-8 name; rename it"


def test_a_file_that_gives_an_error_when_read(tmp_path: Path) -> None:
    path = write(tmp_path, {}) / "a.jsonl"
    path.symlink_to("/proc/self/mem")
    error = f"{path}: cannot be read: Input/output error"
    assert read(tmp_path) == Found([[], []], RowCounts(), [], error)


LINES = [good("abc") + b"\n", good("def") + b"\n"] * 20


def _shorter(path: Path) -> None:
    os.truncate(path, len(LINES[0]) * 20 + 7)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(LINES[0])


def _lines_moved(path: Path) -> None:
    path.write_bytes(b"\n" + b"".join(LINES)[:-1])


def _larger_file_in_its_place(path: Path) -> None:
    path.with_name("other").write_bytes(b"".join(LINES * 2))
    path.with_name("other").replace(path)


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (_shorter, "changed while it was read: it has 907 bytes instead of 1,800"),
        (_emptied, "changed while it was read: it has 0 bytes instead of 1,800"),
        (_grown, "changed while it was read: it has 1,845 bytes instead of 1,800"),
        (
            _larger_file_in_its_place,
            "changed while it was read: it has 3,600 bytes instead of 1,800",
        ),
        (_lines_moved, "changed while it was read: line"),
        (Path.unlink, "cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, change: Callable[[Path], None], how: str, shuffle: bool
) -> None:
    path = write(tmp_path, {"a.jsonl": b"".join(LINES), "b.jsonl": b"".join(LINES)}) / "a.jsonl"
    going = iter(steps_of(tmp_path, shuffle=shuffle))
    seen = [next(going)]
    change(path)
    with pytest.raises(DataError) as caught:
        seen.extend(going)
    assert str(caught.value).startswith(f"{path}: {how}")
    assert "\n" not in str(caught.value)
    # Nothing that was given before is wrong, and nothing was set aside for it.
    rows = [(s.epoch, e.file, e.line) for s in seen for b in s.micro_batches for e in b.keys]
    assert len(set(rows)) == len(rows)
    assert sum((step.rows for step in seen), start=RowCounts()).bad == {}
    assert quarantined(tmp_path) == []


def test_text_that_a_hook_made_and_no_file_can_hold(tmp_path: Path) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(
        "def process_data(record, tokenizer, max_length):\n"
        "    if record['prompt'] == 'raise':\n"
        "        raise ValueError('bad: \\ud800')\n"
        "    return tokenizer('\\ud800')\n"
    )
    write(tmp_path, {"a.jsonl": b'{"prompt": "raise"}\n{"prompt": "tokenize"}\n'})
    found = read(tmp_path, hook=str(hook))
    assert [one[:4] for one in found.quarantine] == [
        ("a.jsonl", 1, 0, "hook_raised"),
        ("a.jsonl", 2, 20, "hook_raised"),
    ]
    assert found.quarantine[0][4] == r"hook raised ValueError: bad: \ud800 (hook.py line 3)"
    stopped = read(tmp_path, hook=str(hook), max_bad_fraction=0.0, shuffle=False)
    assert stopped.error is not None
    assert stopped.error.encode().endswith(rb": bad: \ud800 (hook.py line 3); " + REMEDY.encode())


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_line_of_a_gigabyte_is_never_in_memory() -> None:
    # Not in pytest's folder, which would keep the texts of the compressed ones.
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.unit.data.huge_line", folder]
        found = json.loads(subprocess.check_output(command, cwd=ROOT, timeout=190))
    expected = []
    for kind, size in huge_line.HOLE_BYTES.items():
        num_bytes = len(huge_line.BEGIN) + size + len(huge_line.END)
        message = f"a line of {num_bytes:,} bytes; 67,108,864 are allowed"
        expected.append([f"a{kind}", 2, len(huge_line.FIRST), "line_too_long", message])
    assert found["error"] is None
    assert found["quarantine"] == expected
    rows = [[f"a{kind}", line, text] for kind in KINDS for line, text in ((1, "cba"), (3, "fed"))]
    assert found["epochs"] == [rows, rows]
    # Of many bytes, the rows are estimated from the first of them.
    assert found["counted"] == [[[2], True], [[3], False], [[3], False]]
    assert found["grew_mb"] < 64
