"""A rank's writing: errors are kept, found behind torch's, and the bytes are on the disk."""

import errno
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.training.checkpoint import shard_writer
from llada_sft.training.checkpoint.checksums import FileRecord, record_of_file
from llada_sft.training.checkpoint.shard_writer import (
    ShardWriter,
    tensor_bytes,
    write_error,
    write_shard,
)

STATE = {"module": {"a": torch.arange(10.0)}, "groups": [torch.zeros(3, dtype=torch.bfloat16)]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = ShardWriter()
    writer.makedirs(str(tmp_path / "shards"))
    writer.save(STATE, str(tmp_path / "shards/one.pt"))
    assert (writer.error, writer.num_bytes) == (None, 46)
    found = writer.load(str(tmp_path / "shards/one.pt"))
    assert torch.equal(found["module"]["a"], torch.arange(10.0))


def test_every_shard_is_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    write_shard(STATE, tmp_path / "one.pt")
    assert sizes == [(tmp_path / "one.pt").stat().st_size]


def test_the_first_error_is_kept_and_no_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, tried = ShardWriter(), []

    def full(state: object, path: Path, advanced: object) -> None:
        tried.append(path.name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(shard_writer, "write_shard", full)
    for name in ("a", "b"):
        writer.save(STATE, str(tmp_path / name))
    writer.save_text("text", tmp_path / "c")
    assert tried == ["a"]
    assert list(tmp_path.iterdir()) == []
    assert writer.records(tmp_path) == {}
    assert isinstance(writer.error, OSError)
    assert (writer.error.errno, writer.error.strerror) == (28, "No space left on device")
    # Both count for what is needed.
    assert writer.num_bytes == 2 * 46
    writer.begin()
    assert (writer.error, writer.num_bytes) == (None, 0)


def test_a_folder_that_cannot_be_made_is_an_error_to_keep(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = ShardWriter()
    writer.makedirs(str(tmp_path / "file/below"))
    assert writer.error is not None
    assert writer.error.strerror == "Not a directory"


def test_a_folder_that_cannot_be_made_later_does_not_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: object, path: Path, advanced: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    writer = ShardWriter()
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "write_shard", full)
        writer.save(STATE, str(tmp_path / "a"))
    (tmp_path / "file").touch()
    writer.makedirs(str(tmp_path / "file/below"))
    assert writer.error is not None and writer.error.errno == errno.ENOSPC


def test_a_defect_is_none_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(state: object, path: Path, advanced: object) -> None:
        raise RuntimeError("a tensor of the wrong shape")

    monkeypatch.setattr(shard_writer, "write_shard", defect)
    with pytest.raises(RuntimeError, match="wrong shape"):
        ShardWriter().save(STATE, str(tmp_path / "one.pt"))


def test_all_that_was_written_is_recorded(tmp_path: Path) -> None:
    writer = ShardWriter()
    writer.makedirs(str(tmp_path / "shards"))
    writer.save(STATE, str(tmp_path / "shards/one.pt"))
    writer.save_text("text", tmp_path / "latest")
    assert writer.records(tmp_path) == {
        name: record_of_file(tmp_path / name)[0] for name in ("shards/one.pt", "latest")
    }
    writer.begin()
    assert writer.records(tmp_path) == {}


def test_what_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"a": Hostile()}, tmp_path / "one.pt")
    with pytest.raises(pickle.UnpicklingError):
        ShardWriter().load(str(tmp_path / "one.pt"))
    assert not (tmp_path / "ran").exists()


def test_in_the_background_what_is_written_is_what_was_there_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, write = threading.Event(), shard_writer.write_shard

    def slowed(*given: Any) -> FileRecord:
        assert go_on.wait(60)
        return write(*given)

    state = {"module": {"a": torch.arange(10.0)}, "steps": [1, {"two": 2}]}
    expected = write(state, tmp_path / "expected.pt")
    monkeypatch.setattr(shard_writer, "write_shard", slowed)
    writer = ShardWriter()
    writer.begin(background=True)
    writer.save(state, str(tmp_path / "one.pt"))
    writer.save_text("text", tmp_path / "latest")
    state["module"]["a"].fill_(7)
    state["steps"][1]["two"] = 3
    assert not writer.ended(0.01)
    assert not (tmp_path / "latest").exists()
    with pytest.raises(AssertionError, match="still being written"):
        writer.begin()
    go_on.set()
    assert writer.ended(60)
    assert writer.records(tmp_path) == {"one.pt": expected, "latest": FileRecord.of(b"text")}
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "expected.pt").read_bytes()
    assert writer.progress == expected.size and writer.seconds > 0
    writer.begin()
    assert (writer.progress, writer.seconds, writer.records(tmp_path)) == (0, 0.0, {})


def test_in_the_background_the_first_error_is_kept_and_a_defect_is_raised_where_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([OSError(errno.ENOSPC, "No space left on device"), RuntimeError("shape")])

    def failing(*given: object) -> None:
        raise next(errors)

    monkeypatch.setattr(shard_writer, "write_shard", failing)
    writer = ShardWriter()
    writer.begin(background=True)
    writer.save(STATE, str(tmp_path / "one.pt"))
    assert writer.ended(60)
    assert writer.error is not None and writer.error.errno == errno.ENOSPC
    writer.save(STATE, str(tmp_path / "two.pt"))
    assert writer.ended(60)
    assert writer.num_bytes == 2 * 46
    writer.begin(background=True)
    writer.save(STATE, str(tmp_path / "one.pt"))
    with pytest.raises(RuntimeError, match="shape"):
        writer.ended(60)


def test_torch_says_why_on_a_full_device() -> None:
    # /dev/full takes nothing; torch raises a RuntimeError about positions.
    with pytest.raises((OSError, RuntimeError)) as caught:
        write_shard({"a": torch.zeros(1 << 20)}, Path("/dev/full"))
    found = write_error(caught.value)
    assert found is not None
    assert found.strerror == "No space left on device"
    # It goes to the other ranks.
    assert pickle.loads(pickle.dumps(found)).strerror == "No space left on device"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "the file was cut short"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "the file"),
        (TimeoutError("no answer"), "no answer"),
    ],
)
def test_errors_without_a_number(error: Exception, reason: str) -> None:
    found = write_error(error)
    assert found is not None
    assert reason in str(found.strerror)


def test_other_errors() -> None:
    assert write_error(RuntimeError("shape")) is None


def test_bytes_of_nothing() -> None:
    assert tensor_bytes({"a": None, "b": 3, "c": ("x",)}) == 0


def test_a_mapped_file_is_not_read_until_its_tensors_are(tmp_path: Path) -> None:
    path, tensor = tmp_path / "one.pt", torch.arange(1_000_000.0)
    size = write_shard({"a": tensor}, path).size
    num_read = {}
    for maps_files in (False, True):
        before = bytes_read()
        state = ShardWriter(maps_files).load(str(path), "cpu")
        num_read[maps_files] = bytes_read() - before
        assert torch.equal(state["a"], tensor)
        # What is loaded is this process's own: the file stays as it was written.
        state["a"].zero_()
    assert num_read[False] > size > 10 * num_read[True] > 0
    assert torch.equal(torch.load(path)["a"], tensor)


def bytes_read() -> int:
    """What this process has read by system calls, from the page cache or a disk."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "rchar":
            return int(value)
    raise AssertionError("the kernel does not count what is read")
