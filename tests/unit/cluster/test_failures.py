"""Failure reports: one of each rank, whoever writes when; and whatever else lies in their place."""

import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llada_sft.cluster import failures
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.rank.abort import Leaving
from llada_sft.cluster.watch import status
from llada_sft.run_dir import RunDir

OWN = Failure(1, "node1", Cause.HANG, "it is in hook.py:3 f", 7, "", consequence=False, time=5.5)
OF_ANOTHER = replace(OWN, error="it wrote no stack", witness=0)
FOLLOWED = replace(OWN, cause=Cause.EXCEPTION, error="another rank failed", consequence=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.mark.parametrize(
    ("written", "stays"),
    [
        pytest.param([OWN], OWN, id="its own"),
        pytest.param([OF_ANOTHER], OF_ANOTHER, id="of another"),
        pytest.param([OF_ANOTHER, OWN], OWN, id="its own replaces that of another"),
        pytest.param([OWN, OF_ANOTHER], OWN, id="that of another does not replace its own"),
        pytest.param([OWN, replace(OWN, error="b")], OWN, id="the first of its own stays"),
        pytest.param([OWN, FOLLOWED], OWN, id="a consequence replaces nothing of its own"),
        pytest.param([OF_ANOTHER, FOLLOWED], OF_ANOTHER, id="nor that of another"),
        pytest.param([FOLLOWED, OF_ANOTHER], FOLLOWED, id="its own consequence stays"),
        pytest.param([OF_ANOTHER, replace(OF_ANOTHER, witness=2)], OF_ANOTHER, id="two others"),
    ],
)
def test_a_rank_has_one_report(run: RunDir, written: list[Failure], stays: Failure) -> None:
    for failure in written:
        failures.write(run, failure)
    assert failures.read_all(run) == [stays]
    assert [path.name for path in run.failures.iterdir()] == ["rank_1.json"]


@pytest.mark.parametrize("late", [OF_ANOTHER, FOLLOWED])
def test_a_report_that_comes_in_between_stays(
    run: RunDir, late: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread or rank looks, sees none, and writes; meanwhile the rank has spoken itself."""
    fsync = os.fsync

    def speak_first(file: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        speaker = threading.Thread(target=failures.write, args=(run, OWN))
        speaker.start()
        speaker.join()
        fsync(file)

    monkeypatch.setattr(os, "fsync", speak_first)
    failures.write(run, late)
    assert failures.read_all(run) == [OWN]


@pytest.mark.parametrize("failure", [OWN, OF_ANOTHER, FOLLOWED])
def test_a_report_is_whole_or_not_there(
    run: RunDir, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that is killed while it writes leaves no report that could be read."""

    class Killed(BaseException):
        pass

    def kill(file: int) -> None:
        # All of it is written, but not yet on the disk.
        (partial,) = run.failures.iterdir()
        assert json.loads(partial.read_text()) == asdict(failure)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fsync", kill)
        failures.write(run, failure)
    assert failures.read_all(run) == []
    assert not run.failure(1).exists()
    failures.write(run, failure)
    assert failures.read_all(run) == [failure]
    failures.clear(run)
    assert list(run.failures.iterdir()) == []


def test_a_file_system_without_links(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    failures.write(run, OF_ANOTHER)
    assert failures.read_all(run) == [OF_ANOTHER]


WHOLE = json.dumps(asdict(OWN))
FOREIGN = [
    pytest.param("", id="empty"),
    pytest.param(WHOLE[:40], id="torn"),
    pytest.param("\0" * 64, id="zeros"),
    pytest.param("null", id="null"),
    pytest.param(f"[{WHOLE}]", id="a list"),
    pytest.param("[" * 100_000, id="deep"),
    pytest.param('{"rank": 1}', id="fields missing"),
    pytest.param(WHOLE.replace('"hang"', '"bad luck"'), id="an unknown cause"),
    pytest.param(WHOLE.replace('"hang"', "[]"), id="a cause of another type"),
    pytest.param(WHOLE.replace('"rank": 1', '"rank": "1"'), id="a rank of another type"),
    pytest.param(WHOLE.replace('"rank": 1', '"rank": 4'), id="the rank of another file"),
    pytest.param(WHOLE.replace('"step": 7', '"step": []'), id="a step of another type"),
    pytest.param(WHOLE.replace("5.5", '"noon"'), id="a time of another type"),
    pytest.param(WHOLE.replace('"node":', '"nodes":'), id="a field of another version"),
]


@pytest.mark.parametrize("text", FOREIGN)
def test_what_is_no_report_is_a_rank_without_words(run: RunDir, text: str) -> None:
    run.failures.mkdir()
    run.failure(1).write_text(text)
    failures.write(run, replace(OWN, rank=0))
    assert [one.rank for one in failures.read_all(run)] == [0]
    assert status.failure_lines(run) == []
    # Nor does it keep the rank from speaking, or the next attempt from starting.
    for failure in (FOLLOWED, OWN):
        run.failure(1).write_text(text)
        failures.write(run, failure)
        assert failures.read_all(run)[1] == failure
    failures.clear(run)
    assert list(run.failures.iterdir()) == []


def test_a_folder_in_the_place_of_a_report(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (run.failure(1) / "inside").mkdir(parents=True)
    assert failures.read_all(run) == []
    Leaving(run, 1).report_failure(Cause.EXCEPTION, "KeyError: a")
    assert capsys.readouterr().err == f"{run.failure(1)}: cannot be written: Is a directory\n"
    failures.clear(run)
    assert list(run.failures.iterdir()) == []
