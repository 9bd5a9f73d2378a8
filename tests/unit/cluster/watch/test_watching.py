"""Journal, status and logs of a run, with stand-ins for SLURM's answers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from llada_sft.cluster import failures, history, journal, slurm
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.owner import owner_files
from llada_sft.cluster.owner.identity import Owner
from llada_sft.cluster.watch import logs, status
from llada_sft.cluster.watch.find_run import find_run
from llada_sft.cluster.watch.following import JobWatch, LiveLine
from llada_sft.cluster.watch.logs import Wanted
from llada_sft.cluster.watch.starting import age
from llada_sft.config import load_config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]


@pytest.fixture
def run(project: Path) -> RunDir:
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    return run


def last_job(run: RunDir) -> str | None:
    return history.read(run.journal).job_id


def test_the_journal_counts_attempts_and_skips_a_line_cut_off(run: RunDir) -> None:
    assert (history.read(run.journal).next_number, last_job(run)) == (1, None)
    journal.append(run.journal, {"event": "launched", "job_id": "41"})
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42"})
    with run.journal.open("a") as file:
        file.write('{"event": "sta')
    assert (history.read(run.journal).next_number, last_job(run)) == (2, "42")
    assert journal.read(run.journal)[0]["time"].endswith("+00:00")


def test_status_of_a_run_that_was_only_prepared(run: RunDir, project: Path) -> None:
    assert status.status_lines(find_run("runs/a")) == [
        "run          a",
        f"directory    {project}/runs/a",
        f"model        {project}/model (pretrained)",
        f"data         {project}/shards",
        "ranks        1 nodes × 2, global batch 2 examples",
        "job          none (local, or not launched yet)",
        "progress     no step yet",
        "checkpoints  none",
        "owner        nobody",
        "attempts     none",
    ]


def test_status_of_a_run_that_was_stopped(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=PENDING")
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42"})
    journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": Cause.CANCELLED})
    run.metrics.write_text("step,train/loss,val/loss\n10,5.0,\n20,4.5,\n20,,4.25\n")
    for name in ("step_20", "step_5", "step_30.partial"):
        (run.checkpoints / name).mkdir(parents=True)
    for rank in range(2):
        failures.write(run, Failure(rank, "", Cause.MISTAKE, "mend this"))
    hour_ago = time.time() - 3 * 3600
    os.utime(run.checkpoints / "step_20", (hour_ago, hour_ago))
    assert status.status_lines(find_run("runs/a"))[5:] == [
        "job          42 PENDING",
        "progress     step 20, train/loss 4.5, val/loss 4.25",
        "checkpoints  step 5, step 20 (3 h ago)",
        "owner        job 42, PENDING since its launch",
        "attempts     1: cancelled",
        "failure      mend this",
    ]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ([], "step 20"),
        ([30], "step 20 of 30"),
        ([30, 44], "step 20 of 44"),
        ([20], "step 20 of 20"),
        # An estimate that was too low.
        ([12], "step 20"),
        (["many", None, [30], True], "step 20"),
    ],
)
def test_status_says_how_many_steps_there_are(run: RunDir, told: list[Any], shown: str) -> None:
    for number in told:
        journal.append(run.journal, cast(Entry, {"event": "checkpoint", "total_steps": number}))
    run.metrics.write_text("step,loss\n20,4.5\n")
    lines = status.status_lines(find_run("runs/a"))
    assert lines[6] == f"progress     {shown}, loss 4.5"


def test_status_says_how_fast_the_run_is(run: RunDir) -> None:
    run.metrics.write_text(
        "step,loss,tokens_per_s,mfu,gpu_gb\n10,4.5,9000.7,0.4321,60.04\n20,4.25,12345.6,?,\n"
    )
    lines = status.status_lines(find_run("runs/a"))
    # A number that cannot be read is left out.
    assert lines[6] == "progress     step 20, loss 4.25, 12,346 tokens/s, 60.0 GB"
    run.metrics.write_text("step,loss,tokens_per_s,mfu\n10,4.5,9000.7,0.4321\n")
    lines = status.status_lines(find_run("runs/a"))
    assert lines[6] == "progress     step 10, loss 4.5, 9,001 tokens/s, MFU 43.2%"


def test_status_names_damaged_checkpoints(run: RunDir) -> None:
    for name in ("step_20", "step_30.damaged", "step_40.damaged.2"):
        (run.checkpoints / name).mkdir(parents=True)
    lines = status.status_lines(find_run("runs/a"))
    assert "; damaged: step_30.damaged, step_40.damaged.2" in lines[7]
    (run.checkpoints / "step_20").rmdir()
    lines = status.status_lines(find_run("runs/a"))
    assert lines[7] == "checkpoints  none; damaged: step_30.damaged, step_40.damaged.2"


def test_of_many_mistakes_the_first_are_shown(run: RunDir) -> None:
    lines = [f"a.jsonl:{number}: not JSON" for number in range(status.SHOWN_FAILURE_LINES + 7)]
    failures.write(run, Failure(0, "node1", Cause.MISTAKE, "\n".join(lines)))
    assert status.failure_lines(run) == [*lines[:-7], "and 7 more lines"]


def test_status_of_a_run_with_a_history(run: RunDir) -> None:
    stopped = {"cause": "told to stop", "detail": "SIGUSR2 on rank 3"}
    history: list[dict[str, object]] = [
        {"event": "launched"},
        {"event": "started"},
        {"event": "ended", "cause": "mistake"},
        {"event": "started", "nodes": "node[1-2]"},
        {"event": "resumed", "step": 0},
        {"event": "ended", "step": 40, **stopped},
        {"event": "started", "nodes": "node[1,3]"},
        {"event": "resumed", "step": 40},
        {"event": "checkpoint", "step": 50},
        {"event": "ended", "cause": "hang", "exit_code": 71},
        {"event": "excluded", "node": "node3"},
        {"event": "started", "nodes": "node[1-2]"},
        {"event": "ended", "cause": "time limit", "error": "not requeued: scontrol: down"},
        {"event": "started", "nodes": "node[1-2]"},
        {"event": "excluded", "node": "node3"},
        {"event": "excluded", "node": "node4"},
        {"event": "ended", "cause": "killed", "exit_code": 70},
        {"event": "given_up", "detail": "3 failed attempts without a new checkpoint"},
    ]
    for entry in history:
        journal.append(run.journal, cast(Entry, entry))
    shown = [
        "attempts     1: mistake",
        "             2, on node[1-2], steps 0 to 40: told to stop (SIGUSR2 on rank 3)",
        "             3, on node[1,3], steps 40 to 50: hang",
        "             4, on node[1-2]: time limit: not requeued: scontrol: down",
        "             5, on node[1-2]: killed",
        "excluded     node3, node4",
        "given up     3 failed attempts without a new checkpoint",
    ]
    assert status.status_lines(find_run("runs/a"))[9:] == shown
    # Started again by hand: it is not given up any more, and the first attempt is not shown.
    journal.append(run.journal, {"event": "launched"})
    journal.append(run.journal, {"event": "started"})
    assert status.status_lines(find_run("runs/a"))[7:] == [
        "doing        waiting for its ranks to start",
        "checkpoints  none",
        "owner        nobody",
        "attempts     1 earlier",
        *shown[1:5],
        "             6: running, or ended by force",
        "excluded     node3, node4",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 days")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_status_needs_no_large_library(run: RunDir) -> None:
    script = """
import sys
from llada_sft.cli import main
sys.argv = ["llada-sft", "status", "runs/a"]
assert main() == 0
assert not {"torch", "lightning", "deepspeed", "transformers", "numpy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=True)


def test_status_names_the_nodes_that_are_left_out_of_this_job(
    run: RunDir, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=PENDING")
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    why = "rank 3: ended by a signal: Killed"
    journal.append(
        run.journal, {"event": "excluded", "job_id": "42", "node": "node2", "detail": why}
    )
    lines = status.status_lines(find_run("runs/a"))
    assert f"excluded     node2 ({why})" in lines
    journal.append(run.journal, {"event": "launched", "job_id": "43"})
    assert "excluded" not in "".join(status.status_lines(find_run("runs/a")))


@pytest.mark.parametrize(
    ("script", "job"),
    [
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", "42 no longer known"),
        ("echo down >&2; exit 1", "42 (scontrol --oneliner show job 42: down)"),
        ("exit 3", "42 (scontrol --oneliner show job 42: exit code 3)"),
    ],
)
def test_status_when_slurm_does_not_know(
    run: RunDir, fake_tool: FakeTool, script: str, job: str
) -> None:
    fake_tool("scontrol", script)
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    assert job in status.status_lines(find_run("runs/a"))[5]


def test_a_slurm_that_does_not_answer(fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool("scontrol", "exec sleep 60")
    monkeypatch.setattr(slurm, "TIMEOUT_S", 0.2)
    with pytest.raises(LaunchError, match=r"^scontrol requeue 1: no answer in 0\.2 s; try again$"):
        slurm.requeue("1")


def test_no_run_directory(project: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_run("shards")
    assert str(caught.value) == "shards: not a run directory: it has no config.yaml"


def test_cancel_asks_slurm(run: RunDir, fake_tool: FakeTool, tmp_path: Path) -> None:
    fake_tool("scancel", f'echo "$@" > {tmp_path}/cancelled')
    with pytest.raises(LaunchError) as caught:
        status.cancel_run(run)
    assert str(caught.value) == (
        f"{run.path}: has no SLURM job; stop a local run with Ctrl-C (its owner: nobody)"
    )
    owner_files.create(run.path, 1, Owner("a", "process", host="h", pid=7, since="S"))
    with pytest.raises(LaunchError, match=r"\(its owner: process 7 on host h since S\)"):
        status.cancel_run(run)
    owner_files.create(run.path, 2, Owner("b", "nobody"))
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    assert status.cancel_run(run) == "42"
    assert (tmp_path / "cancelled").read_text() == "42\n"


def test_the_log_of_a_rank(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.rank_log(1).write_text("local\n")
    logs.print_log(run, Wanted(1))
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    (run.slurm / "42_1_log.out").write_text("slurm\n")
    logs.print_log(run, Wanted(1))
    assert capsys.readouterr().out == "local\nslurm\n"
    with pytest.raises(LaunchError) as caught:
        logs.print_log(run, Wanted(7))
    assert str(caught.value) == (
        f"{run.slurm}/42_7_log.out: no such log: has the job started, and has it a rank 7?"
    )


class Growing:
    """A job whose log grows by a part at each question; it had not started at the first one."""

    def __init__(self, log: Path, *parts: bytes) -> None:
        self._log, self._parts, self.asked = log, list(parts), 0

    @property
    def waits(self) -> bool:
        return self.asked == 1

    def is_over(self) -> bool:
        self.asked += 1
        with self._log.open("ab") as file:
            file.write(self._parts.pop(0))
        return not self._parts


def test_following_ends_with_the_job_and_shows_all(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    watch = Growing(tmp_path / "log", b"", b"one\n", b"two\n")
    logs.follow_file(tmp_path / "log", watch, 0.01, 0, LiveLine(lambda: ""))
    assert capfdbinary.readouterr().out == b"one\ntwo\n"


def test_a_log_that_grows_is_news_of_a_job_that_waits(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    watch = Growing(tmp_path / "log", b"one\n", b"two\n")
    # Without the news, the second question would come in an hour.
    logs.follow_file(tmp_path / "log", watch, 3600, 0, LiveLine(lambda: ""))
    assert capfdbinary.readouterr().out == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("state", "over"),
    [("PENDING", False), ("RUNNING", False), ("COMPLETING", False), ("TIMEOUT", True)],
)
def test_following_a_job_ends_when_it_cannot_run_again(
    run: RunDir, fake_tool: FakeTool, state: str, over: bool
) -> None:
    fake_tool("scontrol", f"echo JobId=42 JobState={state}")
    assert JobWatch(run, "42").is_over() is over


def test_following_says_that_a_job_waits_for_a_person(
    run: RunDir, fake_tool: FakeTool, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=REQUEUE_HOLD Reason=job_requeued_in_held_state")
    watch = JobWatch(run, "42")
    assert not watch.is_over()
    assert not watch.is_over()
    assert capfd.readouterr().err == (
        "job 42 REQUEUE_HOLD: requeued and held; to let it run again:  scontrol release 42\n"
    )


def test_following_a_local_run_ends_with_its_journal(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    run.rank_log(0).write_text("line\n")
    journal.append(run.journal, {"event": "started", "attempt": 1})
    journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": "finished"})
    assert logs.follow(run, Wanted(), ask_every_s=0.01) == 0
    assert capfd.readouterr().out.splitlines() == [
        "line",
        "ended        finished (exit code 0)",
        "progress     no step yet",
        "checkpoint   none",
        f"next         llada-sft export {run.path} OUT",
    ]
