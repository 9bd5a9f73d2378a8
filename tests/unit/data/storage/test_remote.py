"""Shards behind URLs: a real S3 server on this machine, and fsspec's memory."""

import gzip
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from llada_sft.data.rows.count import count_rows
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.shards import assign_files, list_shards, shard_root
from llada_sft.data.sources import name_shards
from llada_sft.data.storage import cache
from llada_sft.data.storage.files import RemoteFile
from llada_sft.errors import ConfigError, DataError

# The server's own libraries.
pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CONTENTS = {
    "a.jsonl": b"1\n2\n",
    "b.jsonl.gz": gzip.compress(b"3\n\n4\n"),
    "c.jsonl": b"",
    "ignored.txt": b"x",
    ".hidden.jsonl": b"x",
    "deeper/d.jsonl": b"5\n",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """An S3 service that holds `CONTENTS` below s3://bucket/train."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("bucket")
        for name, content in CONTENTS.items():
            fs.pipe_file(f"bucket/train/{name}", content)
        yield fs
    server.stop()


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    for name, content in CONTENTS.items():
        fs.pipe_file(f"/train/{name}", content)
    yield fs
    fs.rm("/train", recursive=True)


def one_epoch(url: str, folder: Path) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    rows = RowStream(
        name_shards(list_shards(url), shard_root(url)), seed=0, shuffle=False, cache_dir=folder
    )
    texts = [(row.where, row.text) for row in rows.rows(0, rows.start_positions())]
    return texts, rows.fingerprints()


def check_all(url: str, folder: Path) -> None:
    texts, fingerprints = one_epoch(url, folder / "cache")
    assert texts == [
        (f"{url}/a.jsonl:1 (byte 0)", b"1\n"),
        (f"{url}/a.jsonl:2 (byte 2)", b"2\n"),
        (f"{url}/b.jsonl.gz:1 (byte 0)", b"3\n"),
        (f"{url}/b.jsonl.gz:3 (byte 3)", b"4\n"),
    ]
    # Names and fingerprints are those of the same files on a disk.
    local = folder / "data"
    local.mkdir()
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl"):
        (local / name).write_bytes(CONTENTS[name])
    assert fingerprints == one_epoch(str(local), folder / "other")[1]


def test_a_folder_of_s3(s3: Any, tmp_path: Path) -> None:
    check_all("s3://bucket/train", tmp_path)


def test_a_folder_of_memory(memory: Any, tmp_path: Path) -> None:
    check_all("memory://train", tmp_path)


def test_a_glob_and_one_object_of_s3(s3: Any) -> None:
    urls = [str(shard) for shard in list_shards("s3://bucket/train/**/*.jsonl")]
    assert "s3://bucket/train/deeper/d.jsonl" in urls
    assert "s3://bucket/train/a.jsonl" in urls
    (one,) = list_shards("s3://bucket/train/a.jsonl")
    assert isinstance(one, RemoteFile)
    assert (one.url, one.size) == ("s3://bucket/train/a.jsonl", 4)


def test_objects_are_fetched_once(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = one_epoch("s3://bucket/train", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "fetch", None)
        patch.setattr(cache, "index_lines", None)
        assert one_epoch("s3://bucket/train", tmp_path) == first


def test_an_object_that_was_replaced_is_fetched_again(s3: Any, tmp_path: Path) -> None:
    s3.pipe_file("bucket/changing/a.jsonl", b"1\n")
    before = one_epoch("s3://bucket/changing", tmp_path)
    s3.pipe_file("bucket/changing/a.jsonl", b"2\n")
    after = one_epoch("s3://bucket/changing", tmp_path)
    assert [texts for texts, _ in (before, after)] == [
        [("s3://bucket/changing/a.jsonl:1 (byte 0)", b"1\n")],
        [("s3://bucket/changing/a.jsonl:1 (byte 0)", b"2\n")],
    ]
    assert before[1] != after[1]


def test_a_rank_fetches_only_its_own(s3: Any, tmp_path: Path) -> None:
    shards = list_shards("s3://bucket/train")
    mine = assign_files(shards, 0, 3)
    RowStream(name_shards(mine, "s3://bucket/train"), seed=0, shuffle=True, cache_dir=tmp_path)
    (fetched,) = (tmp_path / "fetched").iterdir()
    assert fetched.read_bytes() == CONTENTS["a.jsonl"]


def test_a_stream_goes_to_another_process(memory: Any, tmp_path: Path) -> None:
    root = "memory://train"
    stream = RowStream(
        name_shards(list_shards(root), root), seed=0, shuffle=True, cache_dir=tmp_path
    )
    sent = pickle.loads(pickle.dumps(stream))
    assert list(sent.rows(0, sent.start_positions())) == list(
        stream.rows(0, stream.start_positions())
    )


def test_too_few_objects_for_the_ranks(s3: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        assign_files(list_shards("s3://bucket/train"), 0, 4)
    assert str(caught.value) == (
        "3 shards for 4 ranks in s3://bucket/train: use at most 3 ranks,"
        " or split the files into at least 4"
    )


def test_remote_rows_are_not_counted(s3: Any) -> None:
    assert count_rows(list_shards("s3://bucket/train")) is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-bucket/train", "cannot be listed: The specified bucket does not exist"),
        ("s3://bucket/none", "cannot be listed: bucket/none"),
        ("s3://bucket/none.jsonl", "cannot be listed: bucket/none.jsonl"),
        ("s3://bucket/x*.jsonl", "no .jsonl, .jsonl.gz, .jsonl.zst objects there"),
        ("what://bucket/x", "cannot be listed: Protocol not known: what"),
    ],
)
def test_what_is_not_there(s3: Any, url: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list_shards(url)
    assert str(caught.value) == f"{url}: {message}"


def test_a_service_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(DataError) as caught:
        list_shards("s3://bucket/train")
    assert str(caught.value) == (
        "s3://bucket/train: Install s3fs to access S3; for s3: pip install 'llada-sft[s3]'"
    )


def test_a_truncated_remote_file_is_named_by_its_url(memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/train/b.jsonl.gz", CONTENTS["b.jsonl.gz"][:-3])
    with pytest.raises(DataError) as caught:
        one_epoch("memory://train", tmp_path)
    assert str(caught.value).startswith("memory://train/b.jsonl.gz: truncated or corrupt .gz: ")


def test_an_object_that_comes_short(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(path: str, target: str) -> None:
        Path(target).write_bytes(b"1")

    shards = list_shards("memory://train")
    monkeypatch.setattr(memory, "get_file", short)
    with pytest.raises(DataError) as caught:
        RowStream(name_shards(shards, "memory://train"), seed=0, shuffle=True, cache_dir=tmp_path)
    assert str(caught.value) == (
        "memory://train/a.jsonl: cannot be fetched: 1 of 4 bytes came; start again"
    )
    assert list((tmp_path / "fetched").iterdir()) == []


def test_an_object_that_is_gone_when_it_is_fetched(memory: Any, tmp_path: Path) -> None:
    shards = list_shards("memory://train")
    memory.rm("/train/a.jsonl")
    with pytest.raises(DataError) as caught:
        RowStream(name_shards(shards, "memory://train"), seed=0, shuffle=True, cache_dir=tmp_path)
    assert str(caught.value).startswith("memory://train/a.jsonl: cannot be fetched: ")
