"""Ranks that nobody has launched: which belong together, and when they are left as they are.

tests/slurm/test_here.py starts them with srun and torchrun.
"""

import os
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.attempt import by_hand
from llada_sft.cluster.attempt.by_hand import Group, group_of, join_run
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.owner.claim import claim
from llada_sft.cluster.owner.identity import this_process
from llada_sft.cluster.owner.ownership import VARIABLE, give_up
from llada_sft.config import load_config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

STEP = {
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"}


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A prepared run of two ranks, whose code these tests need not start again."""
    monkeypatch.setattr(by_hand, "_use_own_code", lambda run: None)
    monkeypatch.setattr(by_hand, "WAIT_S", 0.5)
    monkeypatch.setattr(by_hand, "GRACE_S", 0.1)
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    return run


def test_ranks_of_a_step_have_one_name() -> None:
    assert group_of(STEP) == Group("42.3.0", 1, 2, "node[1-2]")


def test_ranks_of_a_torchrun_have_the_name_of_its_process() -> None:
    group = group_of({**STEP, **TORCHRUN})
    assert group is not None
    assert group.name.startswith(f"torchrun.{os.getppid()}.")
    assert group[1:] == (1, 2, "")


def test_torchrun_on_several_nodes_is_refused() -> None:
    with pytest.raises(LaunchError) as caught:
        group_of({**TORCHRUN, "GROUP_WORLD_SIZE": "2"})
    assert str(caught.value) == (
        "torchrun starts ranks on one node only; on several nodes use  launch.py --here ,"
        " or  srun python -m llada_sft.cluster rank RUN"
    )


def test_ranks_of_a_batch_script_are_left_as_they_are(run: RunDir) -> None:
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42", "restarts": 0})
    environment = STEP.copy()
    assert join_run(run, environment) is None
    assert environment == STEP


def test_rank_0_claims_the_run_and_the_others_follow(run: RunDir) -> None:
    first, second = {**STEP, "SLURM_PROCID": "0"}, STEP.copy()
    ownership = join_run(run, first)
    assert ownership is not None
    assert join_run(run, second) is None
    names = ("MASTER_ADDR", "MASTER_PORT", VARIABLE)
    assert [first[name] for name in names] == [second[name] for name in names]
    assert first[VARIABLE] == ownership.word
    (launched, started) = journal.read(run.journal)
    assert (launched["event"], started["event"]) == ("launched", "started")
    assert (started["nodes"], started["world_size"]) == ("node[1-2]", 2)
    assert "job_id" not in started
    ownership.release()


def test_an_attempt_that_nobody_saw_end_is_closed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranks were started by hand, too, and killed."""
    monkeypatch.setattr(by_hand, "process_start", lambda pid: "1")
    for number in (1, 2):
        environment = {**TORCHRUN, "RANK": "0", "TORCHELASTIC_RESTART_COUNT": str(number)}
        ownership = join_run(run, environment)
        assert ownership is not None
        ownership.release()
    events = [(entry["event"], entry.get("attempt")) for entry in journal.read(run.journal)]
    closed = [("failed", 1), ("ended", 1)]
    assert events == [
        ("launched", None),
        ("started", 1),
        ("launched", None),
        *closed,
        ("started", 2),
    ]


def test_a_rank_whose_rank_0_never_starts(run: RunDir) -> None:
    with pytest.raises(LaunchError) as caught:
        join_run(run, STEP.copy())
    message = "rank 1: rank 0 did not start within 0.5 s: its output says why"
    assert str(caught.value) == message
    assert not run.journal.exists()


def test_a_run_that_somebody_owns_is_refused(run: RunDir) -> None:
    # Of a process that lives as long as this test.
    owner = this_process("training")
    ownership = claim(run, owner)
    try:
        with pytest.raises(LaunchError, match=r"is trained by process \d+ on host"):
            join_run(run, {**STEP, "SLURM_PROCID": "0"})
    finally:
        give_up(ownership)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_rank_0_says_that_the_number_of_ranks_is_wrong(run: RunDir, rank: str) -> None:
    environment = {**STEP, "SLURM_NTASKS": "3", "SLURM_PROCID": rank}
    if rank == "1":
        with pytest.raises(SystemExit) as left:
            join_run(run, environment)
        assert left.value.code == 2
        return
    with pytest.raises(LaunchError) as caught:
        join_run(run, environment)
    assert str(caught.value) == (
        f"{run.config}: slurm.nodes × slurm.ranks_per_node = 2 ranks, but 3 were started: start 2,"
        " or prepare the run again with --nodes and slurm.ranks_per_node as they are here"
    )
