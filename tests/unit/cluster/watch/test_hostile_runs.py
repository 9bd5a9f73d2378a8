"""`status`, `logs` and `cancel` on run directories whose files are not what they should be.

Each file that they read is replaced by each kind of thing that may be in its place; with what is
left, `status` shows what it can.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llada_sft import cli
from llada_sft.cluster import failures, journal, run_files
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.rank.phases import RankPhase, record_phase
from llada_sft.cluster.watch import status
from llada_sft.config import load_config
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
Call = Callable[..., tuple[int, str, str]]
READ_BY_STATUS = (
    "config.yaml",
    "journal.jsonl",
    "logs/metrics.csv",
    "failures/rank_0.json",
    "phases/rank_0",
    "phases",
    "checkpoints/step_20",
    "checkpoints",
    "failures",
    "logs",
)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def content(what: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(what)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def of_wrong_types(value: object) -> bytes:
    entries: list[dict[str, object]] = [
        dict.fromkeys(journal.Entry.__annotations__, value) | {"event": event}
        for event in ("launched", "started", "resumed", "checkpoint", "excluded", "ended")
    ]
    return b"\n".join(json.dumps(one).encode() for one in [*entries, {"event": value}]) + b"\n"


KINDS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "an empty file": content(b""),
    "binary": content(bytes(range(256)) * 64),
    "NUL bytes": content(bytes(4096)),
    "invalid UTF-8": content(b"\xff\xfe\xc3\x28\n" * 9),
    "one endless line": content(b"a," * 200_000),
    "a field of a megabyte": content(b'step,loss\n1,"' + b"x" * (1 << 20) + b'"\n'),
    "quotes that are not closed": content(b'step,loss\n"1,2\n3,4\n'),
    "rows of other lengths": content(b"step,loss\n1\n2,3,4,5\n\n,\n"),
    "a terminal's escapes": content(b"step,loss\x1b[31m\n1,\x1b]0;x\x07\n"),
    "a list": content(b"[1, 2]\n[]\n"),
    "a number": content(b"5\n"),
    "null": content(b"null\n"),
    # Ten lines that PyYAML's own loader would make billions of values of.
    "merge keys of merge keys": content(
        b"a0: &a0 {x: 1}\n"
        + b"".join(
            b"a%d: &a%d {<<: [%s]}\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9))
            for i in range(1, 12)
        )
    ),
    "deep": content(b"[" * 100_000 + b"\n"),
    "numbers for all values": content(of_wrong_types(7)),
    "lists for all values": content(of_wrong_types([1, None])),
    "objects for all values": content(of_wrong_types({"a": 1})),
    "null for all values": content(of_wrong_types(None)),
    "true for all values": content(of_wrong_types(True)),
    "infinity for all values": content(of_wrong_types(float("inf"))),
    "hostile text for all values": content(of_wrong_types("\ud800\x1b[2J\n--user=root")),
    "a failure without a cause": content(b'{"rank": 0}'),
    "a failure of wrong types": content(
        b'{"rank": [], "node": 1, "cause": "mistake", "error": {}, "step": "x", "time": null}'
    ),
    "a folder": Path.mkdir,
    "a named pipe": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": huge,
}


@pytest.fixture
def run(project: Path, fake_tool: FakeTool) -> RunDir:
    """A run with all the files that `status` reads."""
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING")
    fake_tool("scancel", 'echo "$@"')
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42"})
    run.metrics.write_text("step,loss\n20,4.5\n")
    (run.checkpoints / "step_20").mkdir(parents=True)
    (run.slurm / "42_0_log.out").write_text("a line\n")
    failures.write(run, Failure(0, "", Cause.MISTAKE, "fix this"))
    record_phase(run, RankPhase(0, 1, "network", since=0.0))
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llada-sft", *arguments])
        code = cli.main()
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("file", READ_BY_STATUS)
@pytest.mark.parametrize("kind", KINDS)
def test_status_shows_the_rest(run: RunDir, call: Call, file: str, kind: str) -> None:
    path = run.path / file
    remove(path)
    KINDS[kind](path)
    code, out, err = call("status", str(run.path))
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    names = {line[:12].strip() for line in out.splitlines()}
    assert {"directory", "job", "progress", "checkpoints", "attempts"} <= names
    # What the other files say is shown.
    assert file == "journal.jsonl" or "job          42 RUNNING" in out
    assert file in ("logs", "logs/metrics.csv") or "progress     step 20, loss 4.5" in out
    assert file.startswith("checkpoints") or "checkpoints  step 20 (" in out
    assert file.startswith("failures") or "failure      fix this" in out
    assert file.startswith(("phases", "journal")) or "doing        loading the model for" in out
    assert file == "config.yaml" or "run          a" in out


@pytest.mark.parametrize("file", ["config.yaml", "logs/metrics.csv", "failures"])
@pytest.mark.parametrize("kind", KINDS)
def test_logs_and_cancel_need_no_config(run: RunDir, call: Call, file: str, kind: str) -> None:
    remove(run.path / file)
    KINDS[kind](run.path / file)
    assert call("logs", str(run.path)) == (0, "a line\n", "")
    code, out, err = call("cancel", str(run.path))
    assert (code, err) == (0, "")
    assert f"cancelled job 42; to resume later:  llada-sft resume {run.path}" in out


# A log of any size is printed.
@pytest.mark.parametrize("kind", [one for one in KINDS if one != "a terabyte"])
def test_a_log_that_is_something_else(run: RunDir, call: Call, kind: str) -> None:
    log = run.slurm / "42_0_log.out"
    remove(log)
    KINDS[kind](log)
    code, _, err = call("logs", str(run.path))
    assert code in (0, 2)
    assert (code == 0) == (err == "")
    assert len(err.splitlines()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_cancel_without_a_readable_journal(run: RunDir, call: Call, kind: str) -> None:
    remove(run.journal)
    KINDS[kind](run.journal)
    code, out, err = call("cancel", str(run.path))
    # Nothing that is not a job's number ever comes to scancel.
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.binary(max_size=400),
    file=st.sampled_from(["config.yaml", "journal.jsonl", "logs/metrics.csv"]),
)
def test_status_of_random_bytes(run: RunDir, data: bytes, file: str) -> None:
    path = run.path / file
    before = path.read_bytes()
    try:
        path.write_bytes(data)
        assert any(line.startswith("checkpoints  step 20") for line in status.status_lines(run))
        path.write_bytes(before[: len(data)] + data)
        assert any(line.startswith("checkpoints  step 20") for line in status.status_lines(run))
    finally:
        path.write_bytes(before)


def test_unreadable_files(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root nothing is unreadable: the system call says so here."""

    def refuse(path: object, *more: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(run_files.os, "open", refuse)
    lines = status.status_lines(run)
    assert f"config       {run.config}: cannot be read: Permission denied" in lines
    assert f"journal      cannot be read: {run.journal}: Permission denied" in lines
    assert f"progress     cannot be read: {run.metrics}: Permission denied" in lines


def test_a_folder_in_place_of_a_file_is_named(run: RunDir) -> None:
    run.journal.unlink()
    run.journal.mkdir()
    assert f"journal      cannot be read: {run.journal}: Is a directory" in status.status_lines(run)


def test_what_is_printed_is_safe_for_a_terminal() -> None:
    assert run_files.printable("a\x1b[2J\x00\ud800\n×") == "a?[2J???×"
    assert len(run_files.printable("x" * 9999)) == run_files.MAX_LINE_CHARACTERS + 3


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"0123456789")
    assert (run_files.read_end(file, 4), run_files.read_start(file, 4)) == (b"6789", b"0123")
