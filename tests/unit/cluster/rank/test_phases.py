"""What the ranks do before their first step: written by each, read by `status`."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from llada_sft.cluster.owner import fence
from llada_sft.cluster.rank import phases
from llada_sft.cluster.rank.phases import PHASES, RankPhase, record_phase
from llada_sft.errors import SupersededError
from llada_sft.run_dir import RunDir
from llada_sft.training.host import StartPhase
from tests.unit.cluster.watch.test_hostile_runs import KINDS


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_the_words_are_those_of_the_training() -> None:
    assert tuple(PHASES) == ("imports", *get_args(StartPhase))


def test_a_rank_replaces_its_file(run: RunDir) -> None:
    written = [
        RankPhase(3, 2, "network", since=10.5, node="node7"),
        RankPhase(0, 2, "data", since=11.0, total_steps=40),
    ]
    record_phase(run, RankPhase(3, 2, "imports", since=1.0, node="node7"))
    for phase in written:
        record_phase(run, phase)
    assert phases.read_phases(run, attempt=2, world_size=4) == written[::-1]
    assert sorted(path.name for path in run.phases.iterdir()) == ["rank_0", "rank_3"]
    # Of another attempt, and of a rank that this one does not have.
    assert phases.read_phases(run, attempt=3, world_size=4) == []
    assert phases.read_phases(run, attempt=2, world_size=3) == written[1:]
    phases.clear_phases(run)
    assert not run.phases.exists()
    phases.clear_phases(run)
    assert phases.read_phases(run, attempt=2, world_size=4) == []


def test_a_training_never_ends_for_it(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.phases.write_text("a file where the folder should be")
    record_phase(run, RankPhase(0, 1, "ranks", since=1.0))
    run.phases.unlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    record_phase(run, RankPhase(0, 1, "ranks", since=1.0))
    assert phases.read_phase(run, 1, 0) is None


def test_nothing_is_written_into_a_run_of_another_owner(run: RunDir) -> None:
    def superseded() -> None:
        raise SupersededError("another owner")

    fence.put_up(run.path, superseded)
    try:
        with pytest.raises(SupersededError):
            record_phase(run, RankPhase(0, 1, "ranks", since=1.0))
    finally:
        fence.take_down(run.path)
    assert not run.phases.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["rank_0", "the folder"])
def test_whatever_is_in_its_place_is_no_phase(run: RunDir, kind: str, place: str) -> None:
    make: Callable[[Path], object] = KINDS[kind]
    if place == "rank_0":
        run.phases.mkdir()
        make(run.rank_phase(0))
    else:
        make(run.phases)
    assert phases.read_phases(run, attempt=1, world_size=2) == []


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 1},
        {"rank": True},
        {"attempt": "1"},
        {"phase": "sleeping"},
        {"phase": ["data"]},
        {"since": "now"},
        {"since": None},
        {"node": 7},
        {"total_steps": 1.5},
        {"more": 1},
    ],
    ids=str,
)
def test_a_foreign_file_is_no_phase(run: RunDir, change: dict[str, object]) -> None:
    valid = {"rank": 0, "attempt": 1, "phase": "data", "since": 1.0, "node": ""}
    run.phases.mkdir()
    run.rank_phase(0).write_text(json.dumps(valid))
    assert phases.read_phase(run, 1, 0) is not None
    run.rank_phase(0).write_text(json.dumps(valid | change))
    assert phases.read_phase(run, 1, 0) is None


@pytest.mark.parametrize("number", ["", "x", "²", "1.partial", "9" * 99])
def test_other_files_of_the_folder_are_not_read(run: RunDir, number: str) -> None:
    run.phases.mkdir()
    (run.phases / f"rank_{number}").write_text("{}")
    assert phases.read_phases(run, attempt=1, world_size=1 << 40) == []
