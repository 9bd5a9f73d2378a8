"""The cache: what is in its place is whole, on the disk, and of the file as it is now."""

import gzip
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llada_sft.data.storage import cache as cache_module
from llada_sft.data.storage.cache import Cache
from llada_sft.data.storage.files import RemoteFile
from llada_sft.data.storage.line_index import fingerprint_of
from llada_sft.errors import DataError

TEXT = b'{"a": 1}\n' * 5000


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(TEXT))
    return path


@pytest.fixture
def remote() -> RemoteFile:
    fs: Any = fsspec.filesystem("memory")
    fs.pipe("/cache/a.jsonl", TEXT)
    return RemoteFile("memory://cache/a.jsonl", len(TEXT), "1")


@pytest.mark.parametrize("kind", ["text", "fetched"])
def test_what_cannot_be_checked_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path,
    shard: Path,
    remote: RemoteFile,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    events: list[tuple[str, str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(file: int) -> None:
        events.append(
            ("fsync", str(Path(f"/proc/self/fd/{file}").readlink()), os.fstat(file).st_size)
        )
        fsync(file)

    def note_replace(path: Path, target: Path) -> Path:
        events.append(("replace", str(path), path.stat().st_size))
        return replace(path, target)

    monkeypatch.setattr("os.fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    _, text = Cache(tmp_path / "cache").prepare(shard if kind == "text" else remote)
    assert text.read_bytes() == TEXT
    ours = [event for event in events if f"/{kind}/{text.stem}" in event[1]]
    assert [what for what, *_ in ours] == ["fsync", "replace"]
    assert {(path, size) for _, path, size in ours} == {(ours[0][1], len(TEXT))}


def test_a_crash_while_a_text_is_written_leaves_no_text(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(file: int) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("os.fsync", crash)
        Cache(tmp_path / "cache").prepare(shard)
    assert not list((tmp_path / "cache/text").iterdir())
    assert Cache(tmp_path / "cache").prepare(shard)[1].read_bytes() == TEXT


def test_a_text_that_was_cut_short_is_made_again(tmp_path: Path, shard: Path) -> None:
    os.utime(shard, (1, 1))
    _, text = Cache(tmp_path / "cache").prepare(shard)
    os.truncate(text, 100)
    index, again = Cache(tmp_path / "cache").prepare(shard)
    assert again == text and text.read_bytes() == TEXT and index.size == len(TEXT)


def test_an_object_that_was_cut_short_is_fetched_again(tmp_path: Path, remote: RemoteFile) -> None:
    _, fetched = Cache(tmp_path / "cache").prepare(remote)
    os.truncate(fetched, 100)
    index, again = Cache(tmp_path / "cache").prepare(remote)
    assert again == fetched and fetched.read_bytes() == TEXT and index.size == len(TEXT)


def test_a_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    for content in (b"abcd", b"abce"):
        path.write_bytes(content)
        assert fingerprint_of(path, "a") == f"4-{zlib.crc32(content):08x}"


def test_the_index_is_read_again_only_for_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n")
    os.utime(path, (1, 1))
    cache = Cache(tmp_path / "cache")
    indexed: list[Path] = []
    index_lines = cache_module.index_lines

    def count(file: Path, shown: str) -> object:
        indexed.append(file)
        return index_lines(file, shown)

    monkeypatch.setattr(cache_module, "index_lines", count)
    assert cache.prepare(path)[0].starts.tolist() == [0, 2]
    assert cache.prepare(path)[0].starts.tolist() == [0, 2]
    assert len(indexed) == 1
    # As `cp --preserve` and `rsync -t` do: other content, of the same size and time.
    path.write_bytes(b"123\n")
    os.utime(path, (1, 1))
    assert cache.prepare(path)[0].starts.tolist() == [0]


def test_the_index_of_a_file_that_has_just_been_changed_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n")
    cache = Cache(tmp_path / "cache")
    cache.prepare(path)
    assert not list((tmp_path / "cache").glob("index/*"))
    os.utime(path, (1, 1))
    cache.prepare(path)
    assert len(list((tmp_path / "cache").glob("index/*"))) == 1


def link(folder: Path) -> None:
    moved = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(moved)


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: None, "belongs to another user"),
        (lambda folder: folder.chmod(0o777), "other users can write to it (mode 0777)"),
        (lambda folder: folder.chmod(0o770), "other users can write to it (mode 0770)"),
        (link, "is a symbolic link, which another user may have made"),
        (replace_by_a_file, "is not a folder"),
    ],
    ids=["of another", "for all", "for the group", "a link", "a file"],
)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_nothing_is_taken_from_a_folder_that_another_user_may_have_filled(
    tmp_path: Path,
    shard: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: bool,
    spoil: Callable[[Path], None],
    problem: str,
) -> None:
    folder = tmp_path / "default"
    monkeypatch.setattr(cache_module, "default_folder", lambda: folder)
    folder.mkdir(0o700)
    if warm:
        _, text = Cache().prepare(shard)
        # As long as the rows that it replaces.
        text.write_bytes(TEXT.replace(b"1", b"2"))
        assert Cache().prepare(shard)[1] == text
    spoil(folder)
    if problem == "belongs to another user":
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        Cache().prepare(shard)
    assert str(caught.value) == f"{folder}: {problem}; remove it, or set data.cache_dir"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_another_user_makes_in_this_very_moment(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mkdir = tmp_path / "default", Path.mkdir
    monkeypatch.setattr(cache_module, "default_folder", lambda: folder)

    def too_late(path: Path, *args: Any, **options: Any) -> None:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        path.mkdir()
        path.chmod(0o777)
        path.mkdir(*args, **options)

    monkeypatch.setattr(Path, "mkdir", too_late)
    with pytest.raises(DataError, match="other users can write to it"):
        Cache().prepare(shard)
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_named_may_be_shared(tmp_path: Path, shard: Path) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    folder.chmod(0o2770)
    _, text = Cache(folder).prepare(shard)
    assert text.read_bytes() == TEXT


def test_the_default_folder_is_made_for_oneself_alone(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "default_folder", lambda: tmp_path / "default")
    before = os.umask(0)
    try:
        Cache().prepare(shard)
    finally:
        os.umask(before)
    assert (tmp_path / "default").stat().st_mode & 0o777 == 0o700
    assert Cache().prepare(shard)[1].read_bytes() == TEXT


def test_a_small_plain_file_needs_no_index(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is scanned sooner than its index is read."""
    monkeypatch.setattr(cache_module, "SMALL_BYTES", 20)
    cache = Cache(tmp_path / "cache")
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    small.write_bytes(TEXT[:18])
    large.write_bytes(TEXT[:27])
    for path in (small, large):
        os.utime(path, (0, 0))
    for path, rows in ((small, 2), (large, 3), (shard, 5000)):
        index, _ = cache.prepare(path)
        assert len(index.starts) == rows
    monkeypatch.setattr(cache_module.time, "time_ns", lambda: 1 << 62)
    for path in (small, large):
        cache.prepare(path)
    assert len(list((tmp_path / "cache").glob("index/*"))) == 1
