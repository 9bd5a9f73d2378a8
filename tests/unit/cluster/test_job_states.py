"""The states of a job that SLURM may report, and what they mean for a run.

The outputs of `scontrol show job` are written from SLURM's documentation ("Job State Codes",
squeue(1), the release notes of 25.11): no such version can be installed here.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import job_states, journal
from llada_sft.cluster.attempt import evidence
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.history import Attempt
from llada_sft.cluster.owner import owner_sight
from llada_sft.cluster.rank import stopping
from llada_sft.cluster.rank.stopping import RankJob, cause_of
from llada_sft.cluster.watch import status
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
# All that the documentation lists: has it ended, is SLURM ending it, is it requeued?
STATES = {
    "BOOT_FAIL": "ended",
    "CANCELLED": "ended",
    "COMPLETED": "ended",
    "DEADLINE": "ended",
    "FAILED": "ended",
    "NODE_FAIL": "ended",
    "OUT_OF_MEMORY": "ended",
    "PREEMPTED": "ended",
    "TIMEOUT": "ended",
    "PENDING": "waits",
    "COMPLETING": "ends",
    "STAGE_OUT": "ends",
    "RUNNING": "runs",
    "CONFIGURING": "runs",
    "POWER_UP_NODE": "runs",
    "RESIZING": "runs",
    "SIGNALING": "runs",
    "STOPPED": "runs",
    "SUSPENDED": "runs",
    "EXPEDITING": "requeued",
    "REQUEUED": "requeued",
    "REQUEUE_FED": "requeued",
    "REQUEUE_HOLD": "requeued",
    "SPECIAL_EXIT": "requeued",
    "RESV_DEL_HOLD": "waits",
    "REVOKED": "ends",
    # Several, as in JSON.
    "PENDING,REQUEUE_HOLD": "requeued",
    "FAILED,REQUEUE_HOLD": "requeued",
    "COMPLETED,COMPLETING": "ends",
    "RUNNING,SIGNALING": "runs",
    "RUNNING,COMPLETING": "ends",
    "FAILED,LAUNCH_FAILED": "ended",
    # Of a version to come: not dead before SLURM says so.
    "HIBERNATING": "waits",
    "LAUNCH_FAILED": "waits",
}


@pytest.mark.parametrize(("state", "meaning"), STATES.items())
def test_what_a_state_means(state: str, meaning: str) -> None:
    fields = {"JobState": state, "Restarts": "0"}
    assert job_states.has_ended(state) is (meaning == "ended")
    assert job_states.is_requeued(fields, 0) is (meaning == "requeued")
    # Asked only of what is not requeued.
    assert meaning == "requeued" or job_states.is_ending(state) is meaning.startswith("end")


RELEASE = "to let it run again:  scontrol release 42"


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ("JobState=RUNNING Reason=None", "42 RUNNING"),
        ("JobState=PENDING Reason=Resources", "42 PENDING"),
        (
            "JobState=REQUEUE_HOLD Reason=job_requeued_in_held_state",
            f"42 REQUEUE_HOLD: requeued and held; {RELEASE}",
        ),
        (
            "JobState=PENDING,REQUEUE_HOLD Reason=job_requeued_in_held_state",
            f"42 PENDING,REQUEUE_HOLD: requeued and held; {RELEASE}",
        ),
        (
            "JobState=SPECIAL_EXIT Reason=None",
            f"42 SPECIAL_EXIT: requeued and held after its exit code; {RELEASE}",
        ),
        ("JobState=PENDING Reason=JobHeldUser", f"42 PENDING: held (JobHeldUser); {RELEASE}"),
        (
            "JobState=PENDING Reason=launch_failed_requeued_held",
            f"42 PENDING: held (launch_failed_requeued_held); {RELEASE}",
        ),
        (
            "JobState=EXPEDITING Reason=None",
            "42 EXPEDITING: requeued after its node failed, and the next to start",
        ),
        (
            "JobState=STOPPED",
            "42 STOPPED: its ranks were stopped by a signal; to continue them: "
            " scancel --signal=CONT 42",
        ),
        (
            "JobState=SUSPENDED",
            "42 SUSPENDED: its ranks are suspended until SLURM, or an operator's "
            " scontrol resume 42, continues them",
        ),
        (
            "JobState=RESV_DEL_HOLD",
            "42 RESV_DEL_HOLD: held, for its reservation was deleted; to let it run without one: "
            " scontrol update JobId=42 ReservationName= ; scontrol release 42",
        ),
        ("", "42 no longer known to SLURM"),
    ],
)
def test_status_says_what_a_person_should_do(
    tmp_path: Path, fake_tool: FakeTool, says: str, shown: str
) -> None:
    run = RunDir(tmp_path)
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    fake_tool("scontrol", f"echo JobId=42 {says}" if says else "echo Invalid job id >&2; exit 1")
    assert f"job          {shown}" in status.status_lines(run)


@pytest.mark.parametrize(
    ("state", "over"),
    [("REQUEUE_HOLD", False), ("EXPEDITING", False), ("SUSPENDED", False), ("PREEMPTED", True)],
)
def test_a_job_that_may_run_again_keeps_its_run(
    tmp_path: Path, fake_tool: FakeTool, state: str, over: bool
) -> None:
    run = RunDir(tmp_path)
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    fake_tool("scontrol", f"echo JobId=42 JobState={state}")
    assert job_states.has_ended(state) is over
    line = f"job 42, {state} since its launch"
    assert owner_sight.line(run) == (f"{line} (gone)" if over else line)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("RUNNING", Cause.TOLD_TO_STOP),
        # While SLURM sends the very signal.
        ("SIGNALING", Cause.TOLD_TO_STOP),
        ("RESIZING", Cause.TOLD_TO_STOP),
        ("EXPEDITING", Cause.REQUEUED),
        ("REQUEUE_HOLD", Cause.REQUEUED),
        ("COMPLETING", Cause.CANCELLED),
        ("STAGE_OUT", Cause.CANCELLED),
    ],
)
def test_a_signal_in_another_state_is_not_a_scancel(state: str, cause: Cause) -> None:
    fields = {"JobState": state, "Restarts": "0", "Reason": "None"}
    assert cause_of(["SIGTERM"], fields, RankJob("42", 0, 300)) == cause


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("RUNNING", None),
        ("SIGNALING", None),
        ("EXPEDITING", Cause.REQUEUED),
        ("REQUEUE_HOLD", Cause.REQUEUED),
        ("COMPLETING", Cause.CANCELLED),
    ],
)
def test_what_slurm_did_to_an_attempt(
    tmp_path: Path, fake_tool: FakeTool, state: str, cause: Cause | None
) -> None:
    fake_tool("scontrol", f"echo JobId=42 JobState={state} Restarts=0 Reason=None")
    fake_tool("sinfo", "exit 1")
    job = evidence.BatchJob("42", 0, "", 1)
    started: journal.Entry = {"event": "started", "attempt": 1, "job_id": "42", "restarts": 0}
    found = evidence.of_this_job(
        RunDir(tmp_path), job, Attempt(1, [started], step_before=0), srun_code=1
    )
    assert found.stopped == cause


def test_a_job_in_another_state_is_requeued_once(
    fake_tool: FakeTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "PAUSES_S", (0.0,))
    fake_tool("scontrol", f"echo $@ >> {tmp_path}/calls; echo JobState=SIGNALING Restarts=0")
    stopping.after_stop(["SIGUSR2"], RankJob("42", 0, 300))
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "requeue 42"
