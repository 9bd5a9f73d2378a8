"""How a job that was followed ended: its exit code and summary, and Ctrl-C meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from llada_sft.cluster import failures, journal, slurm
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.watch import ending, logs
from llada_sft.config import load_config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def run(project: Path) -> RunDir:
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    return run


def attempt(run: RunDir, *entries: dict[str, object], job: str | None = "42") -> None:
    of_job = {"job_id": job} if job else {}
    for entry in ({"event": "launched"}, {"event": "started", "attempt": 1}, *entries):
        journal.append(run.journal, cast(Entry, {**entry, **of_job}))


# (what SLURM says, the journal's last entries; exit code, why, first words of what to do next)
ENDINGS = {
    "finished": (
        "JobState=COMPLETED ExitCode=0:0",
        [{"event": "ended", "cause": "finished", "exit_code": 0}],
        (0, "finished", "llada-sft export"),
    ),
    "a mistake": (
        "JobState=FAILED ExitCode=2:0",
        [{"event": "ended", "cause": "mistake", "detail": "hook raised", "exit_code": 2}],
        (2, "mistake: hook raised", "fix what the failure says, then  llada-sft resume"),
    ),
    "a full disk": (
        "JobState=FAILED ExitCode=2:0",
        [{"event": "ended", "cause": "disk full", "exit_code": 2}],
        (2, "disk full", "make room on the disk, then  llada-sft resume"),
    ),
    "a hang": (
        "JobState=FAILED ExitCode=71:0",
        [{"event": "ended", "cause": "hang", "detail": "rank 3", "exit_code": 71}],
        (71, "hang: rank 3", "llada-sft resume"),
    ),
    "given up": (
        "JobState=FAILED ExitCode=70:0",
        [
            {"event": "ended", "cause": "killed", "exit_code": 1},
            {"event": "given_up", "detail": "3 failed attempts", "exit_code": 70},
        ],
        (70, "given up: 3 failed attempts; the last attempt: killed", "llada-sft resume"),
    ),
    "cancelled": (
        "JobState=CANCELLED ExitCode=0:15",
        [{"event": "ended", "cause": "cancelled", "exit_code": 0}],
        (0, "cancelled", "llada-sft resume"),
    ),
    "cancelled while it waited to go on": (
        "JobState=CANCELLED ExitCode=0:0",
        [{"event": "ended", "cause": "preempted", "exit_code": 0}],
        (0, "cancelled", "llada-sft resume"),
    ),
    "not requeued": (
        "JobState=FAILED ExitCode=1:0",
        [{"event": "ended", "cause": "time limit", "error": "not requeued", "exit_code": 1}],
        (1, "time limit: not requeued", "llada-sft resume"),
    ),
    "killed with its batch script": (
        "JobState=TIMEOUT ExitCode=0:9",
        [],
        (137, "SLURM calls job 42 TIMEOUT", "llada-sft resume"),
    ),
    "a lost node": (
        "JobState=NODE_FAIL ExitCode=0:0",
        [],
        (1, "SLURM calls job 42 NODE_FAIL", "llada-sft resume"),
    ),
    "a cause that is no word": (
        "JobState=FAILED ExitCode=1:0",
        [{"event": "ended", "cause": "x"}],
        (1, "x", "llada-sft resume"),
    ),
}


@pytest.mark.parametrize(("slurm_says", "entries", "expected"), ENDINGS.values(), ids=ENDINGS)
def test_following_ends_with_the_jobs_exit_code(
    run: RunDir,
    fake_tool: FakeTool,
    capfd: pytest.CaptureFixture[str],
    slurm_says: str,
    entries: list[dict[str, object]],
    expected: tuple[int, str, str],
) -> None:
    fake_tool("scontrol", f"echo JobId=42 {slurm_says}")
    attempt(run, *entries)
    run.metrics.write_text("step,loss\n20,4.5\n")
    (run.checkpoints / "step_20").mkdir(parents=True)
    failures.write(run, Failure(0, "", Cause.MISTAKE, "hook raised"))
    (run.slurm / "42_0_log.out").write_text("a line\n")
    code, why, action = expected
    assert logs.follow(run, logs.Wanted(), ask_every_s=0.01) == code
    first, *rows = capfd.readouterr().out.splitlines()
    assert (first, rows[0]) == ("a line", f"ended        {why} (exit code {code})")
    assert rows[1:3] == [
        "progress     step 20, loss 4.5",
        f"checkpoint   {run.checkpoints}/step_20",
    ]
    assert ("failure      hook raised" in rows) == (code != 0)
    assert rows[-1].startswith(f"next         {action} {run.path}")


def test_a_job_that_never_started(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=CANCELLED ExitCode=0:0")
    # An attempt of an earlier job says nothing of this one.
    attempt(run, {"event": "ended", "cause": "finished", "exit_code": 0}, job="41")
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    assert ending.find(run, "42").why == "cancelled"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "echo Invalid job id specified >&2; exit 1",
            "unknown: neither the journal nor SLURM knows how job 42 ended",
        ),
        ("echo down >&2; exit 1", "unknown: scontrol --oneliner show job 42: down"),
    ],
)
def test_an_ending_that_nobody_knows_is_a_failure(
    run: RunDir, fake_tool: FakeTool, script: str, why: str
) -> None:
    fake_tool("scontrol", script)
    attempt(run)
    found = ending.find(run, "42")
    assert (found.exit_code, found.why.startswith(why)) == (1, True)


def test_following_outlasts_a_slurm_that_does_not_answer(
    run: RunDir, fake_tool: FakeTool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt(run, {"event": "ended", "cause": "preempted", "exit_code": 0})
    answers = tmp_path / "answers"
    fake_tool(
        "scontrol",
        f"echo >> {answers}; case $(wc -l < {answers}) in"
        " 1|2) echo down >&2; exit 1;;"
        " 3|4) echo JobId=42 JobState=PENDING Reason=Priority;;"
        " *) echo JobId=42 JobState=CANCELLED ExitCode=0:0;; esac",
    )
    assert logs.follow(run, logs.Wanted(), ask_every_s=0.01) == 0
    assert capfd.readouterr().err.splitlines() == [
        "scontrol --oneliner show job 42: down; still following",
        "job 42 is PENDING: Priority: jobs of higher priority are before it: nothing to do but"
        " wait; start: no estimate yet",
    ]


@pytest.mark.parametrize("entries", [["ended"], ["ended", "given_up"]])
def test_without_slurm_the_journal_says_that_it_is_over(
    run: RunDir, fake_tool: FakeTool, entries: list[str]
) -> None:
    fake_tool("scontrol", "echo down >&2; exit 1")
    last: list[dict[str, object]] = [
        {"event": event, "cause": "mistake", "exit_code": 2} for event in entries
    ]
    attempt(run, *last)
    assert logs.follow(run, logs.Wanted(), ask_every_s=0.01) == 2


def test_following_a_local_run_whose_launcher_was_killed_ends(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from llada_sft.cluster.owner.claim import hold
from llada_sft.run_dir import RunDir
with hold(RunDir(Path(sys.argv[1])), "training", 180):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(run.path)], check=False)
    attempt(run, job=None)
    run.rank_log(0).write_text("a line\n")
    assert logs.follow(run, logs.Wanted(), ask_every_s=0.01) == 1
    assert capfd.readouterr().out.splitlines()[:2] == [
        "a line",
        "ended        the journal does not say why (exit code 1)",
    ]


FOLLOW = """
import sys
from llada_sft import cli
sys.argv = ["llada-sft", "logs", sys.argv[1], "--follow"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("job", ["42", None])
def test_ctrl_c_ends_the_following_and_not_the_job(
    run: RunDir, fake_tool: FakeTool, job: str | None
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING")
    attempt(run, job=job)
    log = run.slurm / "42_0_log.out" if job else run.rank_log(0)
    log.write_text("a line\n")
    follower = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(run.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    assert follower.stdout.readline() == "a line\n"
    os.kill(follower.pid, signal.SIGINT)
    out, err = follower.communicate(timeout=60)
    words = (
        f"job 42 continues; to stop it:  llada-sft cancel {run.path}"
        if job
        else f"the run continues: {run.path}; to stop it, press Ctrl-C where it was launched"
    )
    state = ["job 42 is RUNNING"] if job else []
    assert (follower.returncode, out, err.splitlines()) == (130, "", [*state, "", words])


def test_all_questions_of_a_command_wait_ten_seconds_together(
    fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def run_for(command: object, timeout_s: float) -> tuple[int, str, str]:
        waited.append(timeout_s)
        clock[0] += min(timeout_s, 4)
        if timeout_s < 4:
            raise subprocess.TimeoutExpired("scontrol", timeout_s)
        return 0, "", ""

    clock = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slurm, "_run", run_for)
    with slurm.patience():
        slurm.run_tool("scontrol")
        slurm.run_tool("scontrol")
        with pytest.raises(LaunchError, match=r"^scontrol: no answer in 2 s; try again$"):
            slurm.run_tool("scontrol")
    assert waited == [10, 6, 2]
    slurm.run_tool("scontrol")
    assert waited[-1] == slurm.TIMEOUT_S


@pytest.mark.slow
def test_what_a_slow_command_has_started_keeps_nobody_waiting(
    fake_tool: FakeTool, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    fake_tool("squeue", f"sleep 300 & echo $! > {pid}; wait")
    with slurm.patience(2), pytest.raises(LaunchError, match=r"^squeue: no answer in 2 s"):
        slurm.run_tool("squeue")
    child, deadline = int(pid.read_text()), time.monotonic() + 60
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
