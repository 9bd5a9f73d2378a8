"""SLURM is asked why, and to requeue; its answers are as seen on 22.05.8."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import slurm
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.rank import stopping
from llada_sft.cluster.rank.stopping import RankJob, StopReason, after_stop, before_save, cause_of

FakeTool = Callable[[str, str], None]
JOB = RankJob("42", restarts=1, signal_lead_s=300)
# What `scontrol show job` said while rank 0 looked. A job that waits has no PreemptTime at all.
RUNNING = {"JobState": "RUNNING", "Reason": "None", "Restarts": "1", "PreemptTime": "None"}
IN_AN_HOUR, SOON = "3600", "400"
PREEMPTED = {**RUNNING, "PreemptTime": "1795464891", "EndTime": "10"}
GRACE_IS_OVER = {"JobState": "COMPLETING", "Reason": "None", "Restarts": "2", "EndTime": "Unknown"}
SCANCEL = {**RUNNING, "JobState": "COMPLETING", "EndTime": "0"}
AT_THE_LIMIT = {**SCANCEL, "Reason": "TimeLimit"}
REQUEUED = {"JobState": "COMPLETING", "Reason": "None", "Restarts": "2", "EndTime": IN_AN_HOUR}
CASES = [
    ("SIGUSR2", {**RUNNING, "EndTime": SOON}, Cause.TIME_LIMIT, "requeued by us"),
    ("SIGUSR2", {**RUNNING, "EndTime": "-20"}, Cause.TIME_LIMIT, "requeued by us"),
    ("SIGTERM SIGUSR2", AT_THE_LIMIT, Cause.TIME_LIMIT, "requeued by us"),
    ("SIGTERM", AT_THE_LIMIT, Cause.TIME_LIMIT, "requeued by us"),
    ("SIGUSR2", PREEMPTED, Cause.PREEMPTED, "requeued by us"),
    ("SIGTERM", PREEMPTED, Cause.PREEMPTED, "requeued by us"),
    ("SIGTERM SIGUSR2", GRACE_IS_OVER, Cause.PREEMPTED, "left alone"),
    ("SIGUSR2", {**RUNNING, "EndTime": IN_AN_HOUR}, Cause.TOLD_TO_STOP, "requeued by us"),
    ("SIGUSR2", {**RUNNING, "EndTime": "Unknown"}, Cause.TOLD_TO_STOP, "requeued by us"),
    ("SIGTERM", {**RUNNING, "EndTime": IN_AN_HOUR}, Cause.TOLD_TO_STOP, "requeued by us"),
    # Whoever sends TERM so late knows what he does: SLURM itself sends USR2.
    ("SIGTERM", {**RUNNING, "EndTime": SOON}, Cause.TOLD_TO_STOP, "requeued by us"),
    ("SIGTERM", REQUEUED, Cause.REQUEUED, "left alone"),
    ("SIGTERM", {**REQUEUED, "JobState": "PENDING"}, Cause.REQUEUED, "left alone"),
    ("SIGTERM", SCANCEL, Cause.CANCELLED, "left alone"),
    # scancel during the save after another signal, and in the grace time of a preemption.
    ("SIGTERM SIGUSR2", SCANCEL, Cause.CANCELLED, "left alone"),
    ("SIGTERM SIGUSR2", {**PREEMPTED, **SCANCEL}, Cause.CANCELLED, "left alone"),
]


@pytest.fixture
def scontrol(tmp_path: Path, fake_tool: FakeTool) -> Callable[[str], Path]:
    def add(answer: str) -> Path:
        calls = tmp_path / "calls"
        fake_tool("scontrol", f'echo "$@" >> {calls}; {answer}')
        return calls

    return add


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PAUSES_S", (0.0, 0.0, 0.0))


def answer(fields: dict[str, str]) -> dict[str, str]:
    """Make EndTime, which is in seconds from now, what scontrol says."""
    end = fields.get("EndTime", "Unknown")
    known = end.lstrip("-").isdecimal()
    return {**fields, "EndTime": str(int(time.time()) + int(end)) if known else end}


def requeues(calls: Path) -> int:
    return calls.read_text().splitlines().count("requeue 42")


@pytest.mark.parametrize(("signals", "fields", "cause", "then"), CASES)
def test_the_causes(
    scontrol: Callable[[str], Path],
    signals: str,
    fields: dict[str, str],
    cause: Cause,
    then: str,
) -> None:
    words = " ".join(f"{key}={value}" for key, value in answer(fields).items())
    calls = scontrol(f"echo JobId=42 {words}")
    assert after_stop(signals.split(), JOB) == StopReason(cause)
    assert requeues(calls) == (1 if then == "requeued by us" else 0)


@pytest.mark.parametrize(("left_s", "cause"), [(419, Cause.TIME_LIMIT), (430, Cause.TOLD_TO_STOP)])
def test_usr2_comes_up_to_two_minutes_early(left_s: int, cause: Cause) -> None:
    fields = answer({**RUNNING, "EndTime": str(left_s)})
    assert cause_of(["SIGUSR2"], fields, JOB) == cause


@pytest.mark.parametrize(
    ("told", "cause"), [(["SIGUSR2"], Cause.TOLD_TO_STOP), (["SIGTERM"], Cause.CANCELLED)]
)
def test_a_local_run_is_never_requeued(told: list[str], cause: Cause) -> None:
    assert after_stop(told, None) == StopReason(cause)


def test_what_was_seen_before_the_save_counts(scontrol: Callable[[str], Path]) -> None:
    """Preempted by TERM alone, and saving for longer than the grace time."""
    calls = scontrol("echo JobState=RUNNING PreemptTime=1795464891 Restarts=1")
    cause = before_save(["SIGTERM"], JOB)
    scontrol("echo JobState=COMPLETING Restarts=2")
    assert after_stop(["SIGTERM"], JOB, cause) == StopReason(Cause.PREEMPTED)
    assert requeues(calls) == 0
    # Cancelled while it saved: that is heeded.
    scontrol("echo JobState=COMPLETING Restarts=1")
    assert after_stop(["SIGTERM"], JOB, cause) == StopReason(Cause.CANCELLED)
    assert requeues(calls) == 0


def test_a_slow_slurm_does_not_hold_up_the_save(
    scontrol: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ASK_BEFORE_SAVE_S", 0.2)
    scontrol("exec sleep 60")
    assert before_save(["SIGTERM"], JOB) is None


def test_the_job_of_the_environment() -> None:
    assert RankJob.of({}, 300) is None
    assert RankJob.of({"SLURM_JOB_ID": "42"}, 300) == RankJob("42", 0, 300)
    assert RankJob.of({"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "1"}, 300) == JOB


def test_a_requeue_that_fails_is_tried_again_and_then_said(
    scontrol: Callable[[str], Path],
) -> None:
    calls = scontrol('[ "$1" = requeue ] || { echo JobState=RUNNING; exit; }; echo no >&2; exit 1')
    assert after_stop(["SIGUSR2"], JOB) == StopReason(Cause.TOLD_TO_STOP, "scontrol requeue 42: no")
    assert requeues(calls) == 3


def test_a_requeue_that_succeeds_late(scontrol: Callable[[str], Path], tmp_path: Path) -> None:
    calls = scontrol(f"[ -e {tmp_path}/up ] || {{ touch {tmp_path}/up; echo busy >&2; exit 1; }}")
    assert after_stop(["SIGUSR2"], JOB) == StopReason(Cause.TOLD_TO_STOP)
    assert requeues(calls) == 1


def test_a_requeue_without_an_answer_is_not_asked_for_twice(
    scontrol: Callable[[str], Path], tmp_path: Path
) -> None:
    """SLURM did it, and scontrol was killed with the step before it could say so."""
    calls = scontrol(
        f"""
if [ "$1" = requeue ]; then touch {tmp_path}/requeued; kill -9 $$; fi
[ -e {tmp_path}/requeued ] && echo Restarts=2 JobState=COMPLETING && exit
echo Restarts=1 JobState=RUNNING PreemptTime=1795464891"""
    )
    assert after_stop(["SIGTERM"], JOB) == StopReason(Cause.PREEMPTED)
    assert requeues(calls) == 1


def test_cancelled_between_two_tries(scontrol: Callable[[str], Path], tmp_path: Path) -> None:
    calls = scontrol(
        f"""
if [ "$1" = requeue ]; then touch {tmp_path}/cancelled; echo busy >&2; exit 1; fi
[ -e {tmp_path}/cancelled ] && echo Restarts=1 JobState=COMPLETING && exit
echo Restarts=1 JobState=RUNNING"""
    )
    assert after_stop(["SIGUSR2"], JOB) == StopReason(Cause.CANCELLED)
    assert requeues(calls) == 1


def test_no_scontrol_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert after_stop(["SIGUSR2"], JOB) == StopReason(
        Cause.TOLD_TO_STOP, "scontrol not found on this machine"
    )


def test_scontrol_outlives_the_term_that_the_requeue_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM sends TERM to every process of the step, scontrol among them."""
    # Not a shell script: the shell unblocks what it inherits.
    scontrol = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
if "requeue" in sys.argv:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    pathlib.Path("{tmp_path}/requeued").touch()
else:
    print("Restarts=1 JobState=RUNNING")
"""
    (tmp_path / "scontrol").write_text(scontrol)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert after_stop(["SIGUSR2"], JOB) == StopReason(Cause.TOLD_TO_STOP)
    assert (tmp_path / "requeued").exists()


def test_times_are_asked_for_in_seconds(
    scontrol: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "SLURM_TIME_FORMAT", "relative")
    scontrol('echo "EndTime=$SLURM_TIME_FORMAT"')
    assert slurm.job_fields("42") == {"EndTime": "%s"}


def test_a_task_of_an_array_is_not_taken_for_another(fake_tool: FakeTool) -> None:
    """The last task of an array has the array's number: scontrol shows all of them for it."""
    tasks = [
        "JobId=42 ArrayJobId=42 ArrayTaskId=1 JobState=RUNNING",
        "JobId=43 ArrayJobId=42 ArrayTaskId=0 JobState=FAILED",
    ]
    for order in (tasks, tasks[::-1]):
        fake_tool("scontrol", f"printf '%s\\n' {' '.join(map(repr, order))}")
        assert slurm.job_fields("42")["JobState"] == "RUNNING"


@pytest.mark.parametrize(
    ("fields", "cause"), [(PREEMPTED, Cause.PREEMPTED), (AT_THE_LIMIT, Cause.TIME_LIMIT)]
)
def test_a_job_that_is_given_up_is_not_requeued(
    scontrol: Callable[[str], Path], fields: dict[str, str], cause: Cause
) -> None:
    asked: list[Cause] = []

    def given_up(cause: Cause) -> str:
        asked.append(cause)
        return "no progress"

    calls = scontrol("echo " + " ".join(f"{k}={v}" for k, v in answer(fields).items()))
    ending = after_stop(["SIGUSR2"], JOB, None, given_up)
    assert ending == StopReason(cause, given_up="no progress")
    assert (asked, requeues(calls)) == ([cause], 0)


def test_without_scontrol_rank_0_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: the batch script asks instead."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setenv("PATH", "/nowhere")
    reason = after_stop(["SIGUSR2"], JOB)
    assert reason == StopReason(Cause.TOLD_TO_STOP, "scontrol not found on this machine")
    assert pauses == [0.0]
