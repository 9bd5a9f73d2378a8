"""`llada-sft shard` as it is called: what it prints, what it refuses, what a kill leaves."""

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llada_sft.cli import main
from llada_sft.sharding import BAD_ROWS, folder
from tests.signals import heed_ctrl_c
from tests.unit.sharding.sharding import FORMATS, bad_rows_in, lines, records, rows_in

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a folder with one file of each format."""
    monkeypatch.chdir(tmp_path)
    for name, make in FORMATS.items():
        path = Path(name.partition(".")[2].replace(".", "_")) / name
        path.parent.mkdir()
        path.write_bytes(make(records(20)))
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llada-sft", "shard", *arguments])
    return main()


def test_it_says_what_it_made(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "csv/a.csv", "new/train", "--num-shards", "2", "--shuffle") == 0
    out, err = capsys.readouterr()
    sizes = sorted(path.stat().st_size for path in Path("new/train").iterdir())
    expected = f"new/train: 2 shards, 20 rows, {sizes[0]:,} to {sizes[1]:,} bytes of text each\n"
    assert (out, err) == (expected, "")


def test_it_says_what_it_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.jsonl").write_bytes(b"{}\n" + b"oops\n" * 7)
    arguments = ["--num-shards=1", "--compress=gz", "--max-bad-fraction=0.9"]
    assert call(monkeypatch, "bad.jsonl", "out", *arguments) == 0
    report = capsys.readouterr().out.splitlines()
    assert report[0] == "out: 1 shards, 1 rows, 3 to 3 bytes of text each"
    assert report[1] == f"7 bad rows were skipped, listed in out/{BAD_ROWS}; the first:"
    assert len(report) == 7
    assert report[2].startswith("bad.jsonl:2 (byte 3): not JSON: ")
    assert [row["line"] for row in bad_rows_in(Path("out"))] == [2, 3, 4, 5, 6, 7, 8]


def test_it_counts_the_rows_of_each_format(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["jsonl", "csv", "jsonl_gz", "parquet"]
    assert call(monkeypatch, *inputs, "out", "--num-shards=1") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "they come from files of different formats: 40 rows of 2 .jsonl files,"
        " 20 rows of 1 .csv file, 20 rows of 1 .parquet file"
    ]


BAD = {
    "in.jsonl": b"[\n" + b"oops,\n" * 3,
    "good.jsonl": lines(records(300)),
    "some.jsonl": lines(records(98)) + b"oops\n" * 2,
    "one.csv": b"a,b\n1\n",
    "surrogate.json": b'[{"p":"\\ud83d bad"},{"p":"ok \\ud83d\\ude00"}]',
}


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (
            "some.jsonl",
            "",
            "out: is not made: 2 of 100 rows are bad (--max-bad-fraction 0.01)\n"
            "some.jsonl: 2 of 100 rows are bad\n",
        ),
        ("some.jsonl", "--max-bad-fraction 0.02", ""),
        ("some.jsonl good.jsonl", "", ""),
        (
            "some.jsonl good.jsonl",
            "--max-bad-fraction 0",
            "out: is not made: 2 of 400 rows are bad (--max-bad-fraction 0.0)\n"
            "some.jsonl: 2 of 100 rows are bad\n",
        ),
        (
            "in.jsonl good.jsonl one.csv",
            "--max-bad-fraction 1 --shuffle --compress zst",
            "out: is not made: 5 of 305 rows are bad (--max-bad-fraction 1.0)\n"
            "in.jsonl: all 4 rows are bad\none.csv: its only row is bad\n",
        ),
        (
            "surrogate.json",
            "",
            "out: is not made: 1 of 2 rows are bad (--max-bad-fraction 0.01)\n"
            "surrogate.json: 1 of 2 rows are bad\n",
        ),
    ],
)
def test_too_many_bad_rows_make_nothing(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inputs: str,
    options: str,
    message: str,
) -> None:
    for name, content in BAD.items():
        Path(name).write_bytes(content)
    listed = Path(f"out.{BAD_ROWS}")
    listed.write_text("of an earlier run\n")
    before = sorted(here.iterdir())
    code = call(monkeypatch, *inputs.split(), "out", "--num-shards=2", *options.split())
    out, err = capsys.readouterr()
    if not message:
        assert (code, err) == (0, "")
        assert not listed.exists()
        return
    assert (code, out) == (1, "")
    assert sorted(here.iterdir()) == before
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    first = f"all bad rows are listed in {listed}; the first:\n"
    assert err.startswith(message + first)
    shown = err.removeprefix(message + first).splitlines()
    assert len(shown) == min(5, len(rows))
    assert all(line.endswith(row["message"]) for line, row in zip(shown, rows, strict=False))


def test_many_lost_files_are_not_all_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number}.jsonl" for number in range(8)]
    for name in names:
        Path(name).write_bytes(b"oops\n")
    assert call(monkeypatch, *names, "out", "--num-shards=2") == 1
    err = capsys.readouterr().err.splitlines()
    assert err[1:6] == [f"{name}: its only row is bad" for name in names[:5]]
    assert err[6] == "... and all rows of 3 more files"


def test_the_list_of_bad_rows_of_the_working_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    Path("../bad.jsonl").write_bytes(b"oops\n")
    assert call(monkeypatch, "../bad.jsonl", ".", "--num-shards=2") == 1
    assert (here / f"empty.{BAD_ROWS}").exists()
    assert f"listed in {here}/empty.{BAD_ROWS};" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?b", "[!x]", "a{1,2}", "**", "a b", "[", "#$(x)"])
def test_names_are_taken_literally_before_they_are_globs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    for number, file in enumerate([f"{name}.jsonl", "b.JSONL", "c.ndjson", "d.jsonl.gz", "x.txt"]):
        text = lines([{"i": number}])
        (folder / file).write_bytes(gzip.compress(text) if file.endswith("gz") else text)
    (folder / BAD_ROWS).write_bytes(lines([{"i": 9}]))
    inputs = {
        f"{name}/{name}.jsonl": [0],
        name: [0, 1, 2, 3],
        f"{name}/[c-d].*": [2, 3],
        f"{name}/*.JSONL": [1],
    }
    for number, (given, expected) in enumerate(inputs.items()):
        assert call(monkeypatch, given, f"out {number}", "--num-shards=1") == 0
        assert sorted(row["i"] for row in rows_in(Path(f"out {number}"))) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("csv/a.csv out --num-shards 0", "--num-shards: must be at least 1, got 0"),
        ("csv/a.csv out --num-shards 30", "--num-shards: 20 rows for 30 shards: make at most 20"),
        ("none out --num-shards 1", "none: no such folder or file"),
        ("*.csv out --num-shards 1", "*.csv: no file matches"),
        (
            "empty out --num-shards 1",
            "empty: no .jsonl, .jsonl.gz, .jsonl.zst, .ndjson, .ndjson.gz, .ndjson.zst, .json,"
            " .csv, .tsv, .parquet files in this folder",
        ),
        (
            "a.txt out --num-shards 1",
            "a.txt: its name ends in none of .jsonl, .jsonl.gz, .jsonl.zst, .ndjson, .ndjson.gz,"
            " .ndjson.zst, .json, .csv, .tsv, .parquet; do not name it",
        ),
        (
            "mixed out --num-shards 1",
            "mixed: has .json and .parquet files; name those you mean: mixed/*.json",
        ),
        ("csv ./csv/a.csv out --num-shards 1", "csv/a.csv: is named twice; its rows would be"),
        ("csv csv/out --num-shards 1", "csv/out: is in csv, which is to be read; name a folder"),
        ("csv/a.csv csv --num-shards 1", "csv: is there already; remove it or name a new folder"),
        (
            "csv csv/a.csv --num-shards 1",
            "csv/a.csv: is there already and is not a folder; name a new",
        ),
        ("s3://bucket/x out --num-shards 1", "s3://bucket/x: is not on this machine; copy it here"),
        (
            "csv a.txt/out --num-shards 1",
            "a.txt/.out.partial: cannot be written: File exists; make",
        ),
        (
            "csv out --num-shards 1 --max-bad-fraction 1.5",
            "--max-bad-fraction: must be from 0 to 1, got 1.5",
        ),
        ("csv out --num-shards 1 --shuffle --seed -5", "--seed: must be at least 0, got -5"),
        ("'' out --num-shards 1", "IN: is empty; name a file, a folder or a glob"),
        ("old out --num-shards 1", "old: there is only a list of the bad rows of an earlier run"),
        ("*.ndjson out --num-shards 1", "*.ndjson: there is only a list of the bad rows of an"),
        ("csv out --num-shards 99999999", "--num-shards: 99,999,999: this process may open only "),
    ],
)
def test_a_mistake_is_one_line(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    Path("a.txt").touch()
    Path("empty").mkdir()
    Path("old").mkdir()
    Path("old", BAD_ROWS).touch()
    Path(f"old.{BAD_ROWS}").touch()
    Path("mixed").mkdir()
    Path("mixed/a.json").touch()
    Path("mixed/b.parquet").touch()
    before = sorted(here.rglob("*"))
    assert call(monkeypatch, *shlex.split(arguments)) == 2
    assert sorted(here.rglob("*")) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.replace(f"{here}/", "").startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("compress", [[], ["--compress", "zst"]])
@pytest.mark.parametrize("shuffle", [[], ["--shuffle"]])
def test_a_full_disk_is_one_line(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compress: list[str],
    shuffle: list[str],
) -> None:
    real_open = os.open

    def full(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        if "shard_" not in str(path):
            return real_open(path, flags, mode, **more)
        return real_open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", full)
    before = sorted(here.rglob("*"))
    assert call(monkeypatch, "jsonl", "out", "--num-shards", "2", *compress, *shuffle) == 2
    assert capsys.readouterr().err == (
        f"{here}/.out.partial/shard_00000.jsonl{'.zst' if compress else ''}: cannot be written:"
        " No space left on device; make room or name another folder, and start again\n"
    )
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("shuffle", [[], ["--shuffle"]])
def test_a_terminal_sees_a_bar(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shuffle: list[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert call(monkeypatch, "jsonl_gz", "out", "--num-shards", "2", *shuffle) == 0
    err = capsys.readouterr().err
    assert "reading: 100%" in err
    assert ("shuffling: 100%" in err) == bool(shuffle)


def test_an_empty_folder_may_be_filled(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    assert call(monkeypatch, "json", "out", "--num-shards", "1") == 0
    assert len(rows_in(Path("out"))) == 20


# Runs the command; before the `at`-th call of a function it does something else.
SCRIPT = """
import os, signal, sys
from llada_sft import cli
from llada_sft.sharding import {owner} as owner
real, calls = owner.{name}, 0
def patched(*arguments):
    global calls
    calls += 1
    if calls == {at}:
        {do}
    return real(*arguments)
owner.{name} = patched
sys.exit(cli.main())
"""
MOMENTS = {
    "a bucket is written": ("shuffle", "_rows", 2),
    "a bucket is read": ("shuffle", "_in_random_order", 1),
    "rows are dealt out": ("shard_files.Dealer", "deal", 3),
    "all is written": ("shard_files.ShardFiles", "finish", 1),
    "all is closed": ("folder", "check_new", 2),
}


def start(moment: str, do: str, *arguments: str) -> subprocess.Popen[str]:
    owner, name, at = MOMENTS[moment]
    module, _, of = owner.partition(".")
    script = SCRIPT.format(owner=module, name=f"{of}.{name}" if of else name, at=at, do=do)
    return subprocess.Popen(
        [sys.executable, "-c", script, "shard", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=heed_ctrl_c,
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_nothing_that_looks_finished(
    here: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    rows = [{"i": i, "text": "x" * 2000} for i in range(3000)]
    Path("a.jsonl").write_bytes(lines(rows))
    before = sorted(here.iterdir())
    arguments = ["a.jsonl", "out", "--num-shards", "3"]
    shuffle = ["--shuffle"] if "bucket" in moment else []
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    with start(moment, kill, *arguments, *shuffle) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    assert sorted(here.iterdir()) == sorted([*before, here / ".out.partial"])
    # The next run removes what is left.
    assert call(monkeypatch, *arguments) == 0
    assert sorted(row["i"] for row in rows_in(Path("out"))) == list(range(3000))
    assert sorted(here.iterdir()) == sorted([*before, here / "out"])


def test_two_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wait = "print('here', flush=True); sys.stdin.readline()"
    arguments = ["csv", "out", "--num-shards", "1"]
    with start("all is written", wait, *arguments) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        assert call(monkeypatch, *arguments) == 2
        assert capsys.readouterr().err == (
            f"{here}/.out.partial: another process writes here, or has left this;"
            " wait for it or remove it\n"
        )
        out, err = first.communicate("go on\n", timeout=60)
    assert (first.returncode, err) == (0, "")
    assert out.startswith("out: 1 shards, 20 rows")
    assert len(rows_in(Path("out"))) == 20


def test_without_locks_only_a_new_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder.fcntl, "flock", no_locks)
    with folder.new_folder(tmp_path / "out") as partial:
        (partial / "a").touch()
        with pytest.raises(folder.DataError, match="another process writes here, or has left"):
            folder.new_folder(tmp_path / "out").__enter__()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_ctrl_c_leaves_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    interrupt = "os.kill(os.getpid(), signal.SIGINT)"
    with start("all is written", interrupt, "jsonl", "out", "--num-shards", "3") as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert sorted(here.iterdir()) == before


PEAK = """
import sys
from pathlib import Path
from llada_sft.sharding import make_shards
seed = int(sys.argv[2]) if sys.argv[2] else None
make_shards([sys.argv[1]], Path("out"), 4, sys.argv[3] or None, seed)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


def peak_mb(path: Path, seed: str = "", compress: str = "") -> float:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), seed, compress],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=path.parent,
    )
    return int(done.stdout) * 1024 / 1e6


@pytest.mark.parametrize(("seed", "compress"), [("", ""), ("1", ""), ("", "zst")])
def test_a_file_needs_less_memory_than_it_has_bytes(
    tmp_path: Path, seed: str, compress: str
) -> None:
    row = b'{"prompt": "%s", "response": "%s"}\n' % (b"a" * 900, b"b" * 900)
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for _ in range(320):
            file.write(row * 540)
    assert path.stat().st_size > 310e6
    assert peak_mb(path, seed, compress) < 300


@pytest.mark.slow
def test_the_longest_rows_need_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for _ in range(4):
            file.write(b'{"a": "%s"}\n' % (b"x" * (2**26 - 10)))
    assert peak_mb(path) < 300


@pytest.mark.slow
def test_one_large_row_group_needs_no_more(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    words = np.random.default_rng(0).integers(0, 2**63, (5000, 100)).astype(str)
    texts = [" ".join(row) for row in words]
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": texts, "response": texts})
    parquet.write_table(pa.concat_tables([table] * 10).combine_chunks(), path)
    assert parquet.read_metadata(path).num_row_groups == 1
    assert peak_mb(path) < 300
