"""The judge of a chaos run finds what is wrong; nothing runs here."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from faults import CAUSES, GRACEFUL, KILLS, Fault, Planned, choose_faults, make_plan
from verdict import Attempt, judge
from weights import differences

PLANNED = Planned(Fault.USR2_TO_ONE, after=8, rank=1)
KILLED = Planned(Fault.KILL_RANK, after=8, rank=1)
GOOD = (
    Attempt(PLANNED, 1, 9, [""], ["told to stop"]),
    Attempt(KILLED, 10, 17, ["step_9"], ["killed"]),
    Attempt(None, 13, 40, ["step_12"], ["finished"]),
)


def problems(*attempts: Attempt, restarts: int = 2) -> list[str]:
    return judge(attempts, restarts, max_steps=40, checkpoint_every=6)


def changed(number: int, **fields: object) -> list[Attempt]:
    return [replace(one, **fields) if at == number else one for at, one in enumerate(GOOD, 1)]


def test_a_run_as_it_should_be() -> None:
    assert problems(*GOOD) == []


@pytest.mark.parametrize(
    ("number", "fields", "problem"),
    [
        (
            1,
            {"causes": ["requeued"]},
            "attempt 1 (USR2 to one rank): the journal must say 'told to stop' once,"
            " got ['requeued']",
        ),
        (
            2,
            {"causes": []},
            "attempt 2 (kill -9 of a rank): the journal must say 'killed' once, got []",
        ),
        (
            2,
            {"causes": ["killed", "killed"]},
            "attempt 2 (kill -9 of a rank): the journal must say 'killed' once,"
            " got ['killed', 'killed']",
        ),
        (
            3,
            {"causes": ["told to stop"]},
            "attempt 3 (to the end): the journal must say 'finished' once, got ['told to stop']",
        ),
        (1, {"last": 10}, "attempt 1 (USR2 to one rank): lost 1 steps, 0 are allowed"),
        (1, {"last": 8}, "attempt 1 (USR2 to one rank): lost -1 steps, 0 are allowed"),
        (2, {"last": 19}, "attempt 2 (kill -9 of a rank): lost 7 steps, 6 are allowed"),
        (
            3,
            {"loaded": ["step_12.partial"]},
            "attempt 3 (to the end): its first step was 13, and its ranks loaded"
            " ['step_12.partial']",
        ),
        (
            3,
            {"loaded": ["step_12", "step_6"]},
            "attempt 3 (to the end): its first step was 13, and its ranks loaded"
            " ['step_12', 'step_6']",
        ),
        (3, {"last": 39}, "the last step was 39 of 40"),
    ],
)
def test_what_is_wrong_is_named(number: int, fields: dict[str, object], problem: str) -> None:
    assert problems(*changed(number, **fields)) == [problem]


@pytest.mark.parametrize(
    ("first", "loaded", "expected"),
    [
        (13, "step_12", []),
        (19, "step_18", ["lost 5 steps, 6 to 12 are allowed"]),
        (7, "step_6", ["lost 17 steps, 6 to 12 are allowed"]),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used(
    first: int, loaded: str, expected: list[str]
) -> None:
    damaged = Attempt(Planned(Fault.DAMAGED, after=14, rank=0), 10, 23, ["step_9"], ["killed"])
    last = Attempt(None, first, 40, [loaded], ["finished"], damaged=1)
    found = problems(GOOD[0], damaged, last)
    assert found == [f"attempt 2 (a damaged newest checkpoint): {one}" for one in expected]


@pytest.mark.parametrize(("saved", "expected"), [(12, []), (18, ["lost 7 steps, 6 are allowed"])])
def test_a_checkpoint_that_was_being_written_may_be_lost(saved: int, expected: list[str]) -> None:
    """A kill after step 19: checkpoint 18 was still being written, or it was complete."""
    found = problems(*changed(2, last=19, saved=saved))
    assert found == [f"attempt 2 (kill -9 of a rank): {one}" for one in expected]


def test_damage_is_found_where_it_is_and_nowhere_else() -> None:
    damaged = Attempt(Planned(Fault.DAMAGED, after=14, rank=0), 10, 23, ["step_9"], ["killed"])
    last = Attempt(None, 13, 40, ["step_12"], ["finished"])
    assert problems(GOOD[0], damaged, last) == [
        "attempt 2 (a damaged newest checkpoint): the next attempt found 0 damaged checkpoints of 1"
    ]
    assert problems(*changed(3, damaged=1)) == [
        "attempt 2 (kill -9 of a rank): the next attempt found 1 damaged checkpoints of 0"
    ]


def test_a_restart_too_many() -> None:
    assert problems(*GOOD, restarts=3) == ["3 restarts of 3 attempts"]


def test_a_run_that_started_over() -> None:
    started_over = changed(1, first=5, loaded=["step_4"])
    assert problems(*started_over) == ["the first step was 5"]


def test_every_fault_has_a_word() -> None:
    assert CAUSES.keys() == set(Fault)
    assert not GRACEFUL.keys() & KILLS.keys()


def test_a_seed_chooses_the_same_faults() -> None:
    def plan(seed: int) -> list[Planned]:
        generator = Random(seed)
        return make_plan(choose_faults(30, generator, list(Fault)), 6, generator)

    assert plan(1) == plan(1) != plan(2)
    # Each comes before any comes again, and after a checkpoint of its attempt.
    assert {one.fault for one in plan(1)[: len(Fault)]} == set(Fault)
    assert {one.after for one in plan(1) if one.fault != Fault.DAMAGED} <= set(range(7, 12))
    assert {one.after for one in plan(1) if one.fault == Fault.DAMAGED} <= set(range(13, 18))
    assert all(one.rank == 0 for one in plan(1) if one.fault == Fault.KILL_BEFORE_LATEST)


def save(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    torch.save({"state": [tensors]}, folder / "zero_pp_rank_0_optim_states.pt")
    return folder


def test_weights_differ_by_a_bit(tmp_path: Path) -> None:
    one = save(tmp_path / "one", a=torch.tensor([0.0, float("nan")]), b=torch.tensor(3))
    same = save(tmp_path / "same", a=torch.tensor([0.0, float("nan")]), b=torch.tensor(3))
    sign = save(tmp_path / "sign", a=torch.tensor([-0.0, float("nan")]), b=torch.tensor(3))
    fewer = save(tmp_path / "fewer", a=torch.tensor([0.0, float("nan")]))
    (tmp_path / "empty").mkdir()
    file = "zero_pp_rank_0_optim_states.pt"
    assert differences(one, same) == []
    assert differences(one, sign) == [f"{file}: /state/0/a"]
    assert differences(one, fewer) == [f"{file}: /state/0/b"]
    assert differences(one, tmp_path / "empty") == [f"other files: ['{file}'] and []"]
    assert differences(tmp_path / "empty", tmp_path / "empty") == ["other files: [] and []"]
