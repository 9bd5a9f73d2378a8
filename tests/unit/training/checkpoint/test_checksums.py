"""Checksums are those of the bytes on the disk, whoever takes them."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from xxhash import xxh3_128_hexdigest

from llada_sft.training.checkpoint import checksums
from llada_sft.training.checkpoint.checksums import FileRecord, HashingFile, record_of_file
from llada_sft.training.checkpoint.shard_writer import write_shard


def test_what_is_taken_while_writing_is_what_is_read(tmp_path: Path) -> None:
    # One tensor that is hashed by the other thread, and one that is not.
    state = {
        "large": torch.arange(1_000_000.0),
        "a": torch.arange(10_000.0),
        "b": [torch.zeros(3, dtype=torch.bfloat16)],
        "c": "x",
    }
    written = write_shard(state, tmp_path / "one.pt")
    content = (tmp_path / "one.pt").read_bytes()
    assert written == FileRecord(len(content), xxh3_128_hexdigest(content))
    assert record_of_file(tmp_path / "one.pt") == (written, False)
    assert FileRecord.of(content) == written


def test_a_view_of_wider_elements_counts_its_bytes(tmp_path: Path) -> None:
    with (tmp_path / "one").open("wb") as file, ThreadPoolExecutor(1) as hasher:
        hashing = HashingFile(file, hasher)
        hashing.write(memoryview(torch.arange(5).numpy()))  # type: ignore[arg-type]
        hashing.flush()
        assert hashing.record == record_of_file(tmp_path / "one")[0]
    assert hashing.record.size == 40


def test_a_write_that_fails_is_not_hashed_any_longer_when_it_returns(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with ThreadPoolExecutor(1) as hasher:
        hashing = HashingFile(Full(), hasher)
        with pytest.raises(OSError, match="No space left"):
            hashing.write(bytes(4 << 20))
        assert hashing.record == FileRecord.of(bytes(4 << 20))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 10_000])
def test_files_longer_than_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(checksums, "_BUFFER_BYTES", 4096)
    content = bytes(range(1, 251)) * 40
    (tmp_path / "one").write_bytes(content[:size])
    pulses: list[None] = []
    record, zeros = record_of_file(tmp_path / "one", lambda: pulses.append(None))
    assert record == FileRecord.of(content[:size])
    assert not zeros
    assert len(pulses) == -(-size // 4096)


def test_nothing_but_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_BUFFER_BYTES", 4096)
    (tmp_path / "zeros").write_bytes(bytes(10_000))
    assert record_of_file(tmp_path / "zeros") == (FileRecord.of(bytes(10_000)), True)
    for place in (0, 5000, 9999):
        content = bytearray(10_000)
        content[place] = 1
        (tmp_path / "one").write_bytes(content)
        assert record_of_file(tmp_path / "one")[1] is False
