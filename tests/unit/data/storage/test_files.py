"""The kinds of files that a shard may be, and what is cached of them."""

import gzip
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from backports import zstd

from llada_sft.data.rows.count import count_rows
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.shards import list_shards, shard_root
from llada_sft.data.sources import name_shards
from llada_sft.data.storage import cache
from llada_sft.errors import DataError

TEXT = b'{"a": 1}\n\n' + b"".join(b'{"row": %d}\n' % i for i in range(5000))
LONG_AGO = 1_600_000_000
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": lambda text: text,
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstd.compress,
}


def write(path: Path, content: bytes) -> Path:
    """Write a file that was not changed just now: one that was is not cached."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def stream_of(path: Path, folder: Path) -> RowStream:
    return RowStream(name_shards([path], path.parent), seed=5, shuffle=True, cache_dir=folder)


def rows(stream: RowStream, done: int = 0) -> list[tuple[int, int, bytes]]:
    (name,) = stream.fingerprints()
    found = stream.rows(1, {name: FilePosition(done, 0)})
    return [(row.line, row.byte, row.text) for row in found]


@contextmanager
def no_scan() -> Iterator[None]:
    """Fail whatever reads a whole file."""

    def refuse(*_: object) -> None:
        raise AssertionError("a file was scanned")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("index_lines", "fingerprint_of", "open_text", "fetch"):
            patch.setattr(cache, name, refuse)
        yield


@pytest.mark.parametrize("name", COMPRESS)
def test_a_row_can_be_read_at_random_from_every_kind(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "data" / name, COMPRESS[name](TEXT))
    stream = stream_of(path, tmp_path / "cache")
    found = rows(stream)
    assert len(found) == stream.num_rows == 5001
    for line, byte, text in found[:50]:
        assert text == TEXT.splitlines(keepends=True)[line - 1]
        assert TEXT[byte:].startswith(text)
    assert rows(stream_of(path, tmp_path / "cache"), done=4321) == found[4321:]
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", COMPRESS)
def test_a_second_start_scans_nothing(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "data" / name, COMPRESS[name](TEXT))
    first = stream_of(path, tmp_path / "cache")
    with no_scan():
        second = stream_of(path, tmp_path / "cache")
    assert second.fingerprints() == first.fingerprints()
    assert rows(second) == rows(first)


def _newer(path: Path) -> None:
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))


def _same_times_other_content(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-10] + b"x" + content[-9:])
    os.utime(path, (LONG_AGO, LONG_AGO))


def _longer(path: Path) -> None:
    write(path, path.read_bytes() + b"{}\n")


@pytest.mark.parametrize("change", [_newer, _same_times_other_content, _longer])
def test_a_stale_index_is_made_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = write(tmp_path / "data" / "a.jsonl", TEXT)
    before = stream_of(path, tmp_path / "cache").fingerprints()
    change(path)
    after = stream_of(path, tmp_path / "cache")
    fresh = stream_of(path, tmp_path / "another cache")
    assert after.fingerprints() == fresh.fingerprints()
    assert rows(after) == rows(fresh)
    assert (after.fingerprints() == before) == (change is _newer)


@pytest.mark.parametrize("damage", ["empty", "half", "other", "flipped"])
def test_an_unreadable_index_is_made_again(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "data" / "a.jsonl", TEXT)
    expected = rows(stream_of(path, tmp_path / "cache"))
    (index,) = (tmp_path / "cache" / "index").iterdir()
    content = index.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    made = {"empty": b"", "half": content[:middle], "other": b"what is this", "flipped": flipped}
    index.write_bytes(made[damage])
    assert rows(stream_of(path, tmp_path / "cache")) == expected
    assert index.read_bytes() == content


def test_a_file_of_this_moment_is_not_trusted_to_its_times(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n")
    stream_of(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_text_that_is_gone_is_made_again(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "data" / "a.jsonl.gz", gzip.compress(TEXT))
    stream = stream_of(path, tmp_path / "cache")
    expected = rows(stream)
    (text,) = (tmp_path / "cache" / "text").iterdir()
    if damage == "gone":
        text.unlink()
        with pytest.raises(DataError) as caught:
            rows(stream)
        message = f"{path} (in the cache: {text}): cannot be read: No such file or directory"
        assert str(caught.value) == message
    else:
        text.write_bytes(TEXT[:100])
    assert rows(stream_of(path, tmp_path / "cache")) == expected


def test_several_may_do_the_same_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "data" / "a.jsonl.gz", gzip.compress(TEXT))
    found: list[list[tuple[int, int, bytes]]] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        found.append(rows(stream_of(path, tmp_path / "cache")))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(one == found[0] for one in found)
    names = sorted(path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert names == [".jsonl", ".npz"]


@pytest.mark.parametrize("name", COMPRESS)
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    for content in (b"", COMPRESS[name](b"")):
        path = write(tmp_path / "data" / name, content)
        assert stream_of(path, tmp_path / "cache").num_rows == 0
        assert count_rows([path]) == ([0], False)


def test_several_members_and_long_windows(tmp_path: Path) -> None:
    window = {
        zstd.CompressionParameter.window_log: 28,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    contents = {
        "a.jsonl.gz": gzip.compress(b"1\n2") + gzip.compress(b"3\n"),
        "b.jsonl.zst": zstd.compress(b"1\n2") + zstd.compress(b"3\n"),
        "c.jsonl.zst": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstd.compress(b"1\n23\n"),
        "d.jsonl.zst": zstd.compress(b"1\n23\n", options=window),
    }
    for name, content in contents.items():
        path = write(tmp_path / "data" / name, content)
        texts = [text for _, _, text in rows(stream_of(path, tmp_path / "cache"))]
        assert sorted(texts) == [b"1\n", b"23\n"]


def test_a_cache_that_cannot_be_written(
    public_folder: Path, without_privileges: Callable[[], AbstractContextManager[None]]
) -> None:
    path = write(public_folder / "a.jsonl", TEXT)
    public_folder.chmod(0o555)
    with without_privileges(), pytest.raises(DataError) as caught:
        stream_of(path, public_folder / "cache")
    assert str(caught.value) == (
        f"{public_folder}/cache: cannot be used as cache: Permission denied;"
        " set data.cache_dir to a folder with room that can be written"
    )


def test_a_cache_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data" / "a.jsonl.gz", gzip.compress(TEXT))
    real_open = Path.open

    def full(self: Path, mode: str = "r", **more: object) -> object:
        return real_open(Path("/dev/full") if ".partial" in self.name else self, mode, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError) as caught:
        stream_of(path, tmp_path / "cache")
    assert str(caught.value) == (
        f"{tmp_path}/cache: cannot be used as cache: No space left on device;"
        " set data.cache_dir to a folder with room that can be written"
    )
    assert list((tmp_path / "cache" / "text").iterdir()) == []


def test_all_kinds_in_one_folder(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, make(b"{}\n")) for name, make in COMPRESS.items()]
    write(tmp_path / "a.jsonl.bz2", b"")
    assert list_shards(str(tmp_path)) == paths
    assert count_rows(paths) == ([1, 1, 1], False)


def test_compressed_rows_are_not_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(TEXT))
    monkeypatch.setattr("llada_sft.data.rows.count.COUNT_UP_TO_BYTES", 100)
    assert count_rows([path]) is None


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/train/", "s3://bucket/train"),
        ("s3://bucket/train/a.jsonl.gz", "s3://bucket/train"),
        ("gs://bucket/train/*/a-?.jsonl", "gs://bucket/train"),
    ],
)
def test_the_root_of_a_url(url: str, root: str) -> None:
    assert shard_root(url) == root


def test_the_cached_index_is_plain_numpy(tmp_path: Path) -> None:
    path = write(tmp_path / "data" / "a.jsonl", b"a\n\nb\n")
    stream_of(path, tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "index").iterdir()
    with np.load(index) as stored:
        assert stored["starts"].tolist() == [0, 3]
        assert stored["lines"].tolist() == [1, 3]
        assert re.fullmatch(r"5-[0-9a-f]{8}", str(stored["fingerprint"]))
