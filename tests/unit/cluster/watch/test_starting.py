"""Which ranks the others wait for, before the first step."""

from pathlib import Path

import pytest

from llada_sft.cluster.history import Attempt
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.rank.phases import RankPhase, record_phase
from llada_sft.cluster.watch import starting
from llada_sft.run_dir import RunDir

NOW = 1000.0


def attempt(world_size: int) -> Attempt:
    started: Entry = {"event": "started", "attempt": 2, "world_size": world_size}
    return Attempt(2, [started], step_before=0)


@pytest.mark.parametrize(
    ("phases", "world_size", "expected"),
    [
        ({}, 4, "waiting for its ranks to start"),
        ({0: "imports"}, 2, "waiting for rank 1 to start"),
        ({1: "ranks"}, 4, "waiting for ranks 0, 2 and 3 to start"),
        (
            {0: "ranks", 1: "ranks"},
            10**15,
            f"waiting for ranks 2, 3 and {10**15 - 4} more to start",
        ),
        ({0: "network", 1: "network"}, 2, "loading the model for 40 s"),
        (
            {0: "first step", 1: "network"},
            2,
            "waiting for rank 1; rank 1 on node1 is loading the model for 40 s",
        ),
        (
            {0: "ranks", 1: "imports", 2: "ranks", 3: "imports"},
            4,
            "waiting for ranks 1 and 3; rank 1 on node1 is importing its libraries for 40 s",
        ),
        # Rank 0 trains: so do all.
        ({0: "training", 1: "first step"}, 2, ""),
    ],
)
def test_what_a_run_does(
    tmp_path: Path, phases: dict[int, str], world_size: int, expected: str
) -> None:
    run = RunDir(tmp_path)
    for rank, phase in phases.items():
        since = NOW - 40 + rank / 4
        record_phase(run, RankPhase(rank, 2, phase, since=since, node=f"node{rank}"))
    assert starting.doing(run, attempt(world_size), NOW) == expected


def test_ranks_of_an_older_version(tmp_path: Path) -> None:
    resumed: Entry = {"event": "resumed", "step": 0}
    entries = [*attempt(2).entries, resumed]
    assert starting.doing(RunDir(tmp_path), Attempt(2, entries, step_before=0), NOW) == ""


def test_many_ranks(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for rank in range(512):
        late = rank in (3, 17, 40, 41, 42, 500)
        node, phase = f"node{rank // 8}", "network" if late else "first step"
        since = NOW - 40
        record_phase(run, RankPhase(rank, 2, phase, since=since, node=node))
    assert starting.doing(run, attempt(512), NOW) == (
        "waiting for ranks 3, 17 and 4 more; rank 3 on node0 is loading the model for 40 s"
    )


def test_a_clock_that_is_ahead(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record_phase(run, RankPhase(0, 2, "data", since=NOW + 60))
    assert starting.doing(run, attempt(1), NOW) == "preparing its rows for 0 s"


def test_the_steps_of_the_training_are_known_after_the_first(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert starting.total_steps(run, attempt(1)) is None
    record_phase(run, RankPhase(0, 2, "training", since=NOW, total_steps=40))
    assert starting.total_steps(run, attempt(1)) == 40
