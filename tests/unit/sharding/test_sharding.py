"""From files of every kind to shards: the same rows, of the same size, in a known order."""

import json
import os
import random
import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.shards import list_shards
from llada_sft.sharding import make_shards, shuffle
from llada_sft.sharding.blocks import RowBlock
from llada_sft.sharding.shard_files import Compress
from tests.unit.sharding.sharding import (
    FORMATS,
    in_order,
    lines,
    records,
    rows_in,
    shards_in,
    texts_in,
)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compress", [None, "zst", "gz"])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_row_of_every_format(
    tmp_path: Path, name: str, compress: Compress | None, seed: int | None
) -> None:
    rows = records(2000)
    (tmp_path / name).write_bytes(FORMATS[name](rows))
    out = tmp_path / "out"
    made = make_shards([str(tmp_path / name)], out, 3, compress, seed)
    suffix = f".{compress}" if compress else ""
    assert [path.name for path in shards_in(out)] == [
        f"shard_0000{number}.jsonl{suffix}" for number in range(3)
    ]
    assert list_shards(str(out)) == shards_in(out)
    assert in_order(rows_in(out)) == in_order(rows)
    texts = texts_in(out)
    assert made.sizes == list(map(len, texts))
    assert (made.num_rows, made.findings.num_bad) == (2000, 0)
    assert all(text.endswith(b"}\n") for text in texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out"])


def test_without_a_shuffle_each_shard_keeps_the_order_and_has_all_parts(tmp_path: Path) -> None:
    rows = [{"i": i, "text": "x" * 200} for i in range(20_000)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    make_shards([str(tmp_path / "a.jsonl")], tmp_path / "out", 4)
    for path in shards_in(tmp_path / "out"):
        numbers = [row["i"] for row in rows_in_file(path)]
        assert numbers == sorted(numbers)
        quarters = [sum(q * 5000 <= i < (q + 1) * 5000 for i in numbers) for q in range(4)]
        assert min(quarters) > 1100


def rows_in_file(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_plain_rows_are_moved_byte_for_byte(tmp_path: Path) -> None:
    text = b'{"a":1.10,  "b":"\\u00e9"}\n{ "c": 1e400 }\r\n{"d": 12345678901234567890123}'
    (tmp_path / "a.jsonl").write_bytes(text)
    make_shards([str(tmp_path / "a.jsonl")], tmp_path / "out", 1)
    assert texts_in(tmp_path / "out") == [text + b"\n"]


def test_files_are_put_together_at_rows(tmp_path: Path) -> None:
    contents = [
        b'\xef\xbb\xbf{"a": 1}',
        b"",
        b'\n \t\n{"b": 2}\r\n\r\n{"c": 3}',
        b'  {"d": 4} \n\n',
    ]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.jsonl").write_bytes(content)
    make_shards([str(tmp_path / "*.jsonl")], tmp_path / "out", 1)
    (text,) = texts_in(tmp_path / "out")
    assert text == b'{"a": 1}\n{"b": 2}\r\n{"c": 3}\n  {"d": 4} \n'


def test_files_folders_and_globs_together(tmp_path: Path) -> None:
    rows = records(90)
    names = ["one/b.jsonl", "one/a.jsonl.gz", "two/c.csv", "two/[d].json"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(FORMATS[f"a.{name.partition('.')[2]}"](rows[number * 20 :][:20]))
    inputs = [tmp_path / "two/*.csv", tmp_path / "one", tmp_path / "two/[d].json"]
    make_shards([str(one) for one in inputs], tmp_path / "out", 1)
    expected = [*rows[40:60], *rows[20:40], *rows[:20], *rows[60:80]]
    assert rows_in(tmp_path / "out") == expected


def sizes_of(rows: list[int]) -> bytes:
    return b"".join(b'{"%s"}\n' % (b"x" * size) for size in rows)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 60), st.integers(0, 4000)), min_size=1, max_size=300),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(0, 5)),
    st.sampled_from([None, "gz"]),
)
def test_whatever_the_rows_the_shards_have_one_size(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[int],
    num_shards: int,
    seed: int | None,
    compress: Compress | None,
) -> None:
    num_shards = min(num_shards, len(rows))
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_bytes(sizes_of(rows))
    made = make_shards([str(folder / "a.jsonl")], folder / "out", num_shards, compress, seed)
    texts = texts_in(folder / "out")
    assert sorted(line for text in texts for line in text.splitlines(keepends=True)) == sorted(
        sizes_of([row]) for row in rows
    )
    sizes = list(map(len, texts))
    assert sizes == made.sizes
    assert max(sizes) - min(sizes) <= max(len(sizes_of([max(rows)])), min(sizes) / 100)


def test_large_shards_differ_by_less_than_one_percent(tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = [draw.randint(1, 400) for _ in range(60_000)]
    (tmp_path / "a.jsonl").write_bytes(sizes_of(rows))
    sizes = make_shards([str(tmp_path / "a.jsonl")], tmp_path / "out", 7).sizes
    assert sum(sizes) == len(sizes_of(rows))
    assert max(sizes) - min(sizes) < 0.01 * min(sizes)


def make(folder: Path, rows: bytes, seed: int | None, name: str = "a.jsonl") -> list[bytes]:
    number = len(list(folder.iterdir()))
    path = folder / name
    path.write_bytes(rows)
    make_shards([str(path)], folder / f"out {number}", 4, seed=seed)
    return texts_in(folder / f"out {number}")


def test_a_seed_says_the_order(tmp_path: Path) -> None:
    rows = lines({"i": i} for i in range(5000))
    first = make(tmp_path, rows, seed=1)
    assert make(tmp_path, rows, seed=1) == first
    assert make(tmp_path, rows, seed=2) != first
    numbers = [row["i"] for row in rows_in(next(tmp_path.glob("out*")))]
    # The mean distance of neighbours in a random order of n is n / 3.
    steps = [abs(a - b) for a, b in pairwise(numbers)]
    assert 1500 < sum(steps) / len(steps) < 1850


def test_every_order_is_as_likely_whatever_the_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 20)
    monkeypatch.setattr(shuffle, "MAX_BUCKET_BYTES", 24)
    rows = lines({"i": i} for i in range(3))
    seen: dict[bytes, int] = {}
    for seed in range(1200):
        (text,) = shuffled_text(tmp_path, rows, seed)
        seen[text] = seen.get(text, 0) + 1
    assert len(seen) == 6
    # Six standard deviations on either side of 200.
    assert all(122 < count < 278 for count in seen.values())


def shuffled_text(folder: Path, rows: bytes, seed: int) -> list[bytes]:
    ends = np.flatnonzero(np.frombuffer(rows, np.uint8) == 10) + 1
    blocks = shuffle.shuffled(iter([RowBlock(rows, ends, 0)]), folder, seed, len(rows))
    return [b"".join(bytes(block.text) for block in blocks)]


def test_buckets_that_are_too_large_are_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "_MAX_BUCKETS", 2)
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 3000)
    monkeypatch.setattr(shuffle, "MAX_BUCKET_BYTES", 4000)
    rows = records(3000)
    texts = make(tmp_path, lines(rows), seed=0)
    assert in_order(rows_in(next(tmp_path.glob("out*")))) == in_order(rows)
    assert len(texts) == 4


@pytest.mark.parametrize("open_already", [0, 100])
def test_more_shards_than_files_may_be_open(tmp_path: Path, open_already: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" * 300)
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(open_already)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        made = make_shards([str(tmp_path / "a.jsonl")], tmp_path / "out", 300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in opened:
            os.close(file)
    assert len(made.sizes) == len(shards_in(tmp_path / "out")) == 300
