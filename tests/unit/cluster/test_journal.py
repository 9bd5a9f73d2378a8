"""Each line of the journal is whole or absent, whatever ends its writer or fills the disk."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.journal import Entry

ENTRIES: list[Entry] = [
    {"event": "started", "attempt": 1, "nodes": "node[1-2]"},
    {"event": "failed", "error": "süß \u2028 and\nanother line", "traceback": "a\nb"},
    {"event": "ended", "attempt": 1, "cause": "exception"},
]


def without_time(entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        entry.pop("time")
    return entries


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    assert journal.read(file) == []
    for entry in ENTRIES:
        journal.append(file, entry)
    assert journal.read(file)[0]["time"].endswith("+00:00")
    assert without_time(journal.read(file)) == ENTRIES
    assert len(file.read_bytes().splitlines()) == len(ENTRIES)


def test_cut_at_any_byte_the_next_entry_is_whole(tmp_path: Path) -> None:
    """What was whole stays, what was cut is gone, and nothing that follows suffers."""
    whole, file = tmp_path / "whole", tmp_path / "journal.jsonl"
    for entry in ENTRIES:
        journal.append(whole, entry)
    content = whole.read_bytes()
    after: Entry = {"event": "started", "attempt": 2}
    for cut in range(len(content) + 1):
        file.write_bytes(content[:cut])
        # A line that lacks nothing but its end is whole.
        kept = sum(end <= cut + 1 for end in line_ends(content))
        journal.append(file, after)
        assert without_time(journal.read(file)) == [*ENTRIES[:kept], after], cut


def line_ends(content: bytes) -> list[int]:
    return [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]


@pytest.mark.parametrize("garbage", [b"\0" * 40, b"\xff\xfe\n", b'"a word"\n', b"[1]\n", b"\n\n"])
def test_what_is_no_entry_is_left_out(tmp_path: Path, garbage: bytes) -> None:
    file = tmp_path / "journal.jsonl"
    journal.append(file, ENTRIES[0])
    file.write_bytes(file.read_bytes() + garbage)
    journal.append(file, ENTRIES[2])
    assert without_time(journal.read(file)) == [ENTRIES[0], ENTRIES[2]]


@contextmanager
def disk_full_after(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: a write that does not fit is cut short, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_no_half_line_and_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "journal.jsonl"
    journal.append(file, ENTRIES[0])
    before = file.read_bytes()
    for room in range(len(before)):
        with disk_full_after(len(before) + room):
            journal.append(file, ENTRIES[0])
        assert file.read_bytes() == before
    warning = f"{file}: cannot be written (No space left on device); the run continues without\n"
    assert capsys.readouterr().err.count(warning) == 1
    journal.append(file, ENTRIES[2])
    assert without_time(journal.read(file)) == [ENTRIES[0], ENTRIES[2]]


def test_a_journal_that_cannot_be_opened_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.append(tmp_path / "gone/journal.jsonl", ENTRIES[0])
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err


def test_kill_9_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    script = f"""
from pathlib import Path
from llada_sft.cluster import journal
for step in range(first := FIRST, first + 100_000):
    journal.append(Path({str(file)!r}), {{"event": "warning", "step": step, "detail": "x" * 5000}})
    print(step, flush=True)
"""
    rng, confirmed = random.Random(0), []
    for first in range(0, 1_000_000, 100_000):
        command = [sys.executable, "-c", script.replace("FIRST", str(first))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            confirmed.append(int(writer.stdout.readline()))
            # The signal comes at any point of an append.
            time.sleep(rng.random() / 50)
            writer.kill()
            confirmed += [int(line) for line in writer.stdout.read().split()]
    steps = [entry["step"] for entry in journal.read(file)]
    assert set(confirmed) <= set(steps)
    assert steps == sorted(set(steps))
    # At most one of each writer was on the disk before it could be confirmed.
    assert len(steps) - len(confirmed) <= 10
    assert all(entry["detail"] == "x" * 5000 for entry in journal.read(file))
    # The kernel may end a write between two pages: a line of each writer can be cut, and is not
    # read; the next writer starts on a line of its own.
    assert 0 <= len(file.read_bytes().splitlines()) - len(steps) <= 10


def test_an_entry_is_on_the_disk_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []

    def fsync(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append(tmp_path / "journal.jsonl", ENTRIES[0])
    assert synced == [tmp_path / "journal.jsonl"]
