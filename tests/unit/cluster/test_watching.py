"""Journal, status and logs of a run, with stand-ins for SLURM's answers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import failures, journal, logs, prepare, slurm, status
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.config import load_config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]


@pytest.fixture
def run(project: Path) -> RunDir:
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    return run


def test_the_journal_counts_attempts_and_skips_a_line_cut_off(run: RunDir) -> None:
    assert (journal.next_attempt(run.journal), journal.last_job_id(run.journal)) == (1, None)
    journal.append(run.journal, {"event": "launched", "job_id": "41"})
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42"})
    with run.journal.open("a") as file:
        file.write('{"event": "sta')
    assert (journal.next_attempt(run.journal), journal.last_job_id(run.journal)) == (2, "42")
    assert journal.read(run.journal)[0]["time"].endswith("+00:00")


def test_status_of_a_run_that_was_only_prepared(run: RunDir, project: Path) -> None:
    assert status.status_lines(*status.open_run("runs/a")) == [
        "run          a",
        f"directory    {project}/runs/a",
        f"model        {project}/model (pretrained)",
        f"data         {project}/shards",
        "ranks        1 nodes × 2, global batch 2 examples",
        "job          none (local, or not launched yet)",
        "progress     no step yet",
        "checkpoints  none",
        "attempts     none",
    ]


def test_status_of_a_run_that_was_stopped(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=PENDING")
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42"})
    cause = "requeued after SIGUSR2"
    journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": cause})
    run.metrics.write_text("step,train/loss,val/loss\n10,5.0,\n20,4.5,\n20,,4.25\n")
    for name in ("step_20", "step_5", "step_30.partial"):
        (run.checkpoints / name).mkdir(parents=True)
    for rank in range(2):
        failures.write(run, Failure(rank, "", Cause.MISTAKE, "mend this"))
    assert status.status_lines(*status.open_run("runs/a"))[5:] == [
        "job          42 PENDING",
        "progress     step 20, train/loss 4.5, val/loss 4.25",
        "checkpoints  step 5, step 20",
        "attempts     1, the last: requeued after SIGUSR2",
        "failure      mend this",
    ]
    journal.append(run.journal, {"event": "started", "attempt": 2, "job_id": "42"})
    assert (
        "2, the last: running, or ended by force"
        in status.status_lines(*status.open_run("runs/a"))[8]
    )


def test_status_names_the_nodes_that_are_left_out_of_this_job(
    run: RunDir, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=PENDING")
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    why = "rank 3: ended by a signal: Killed"
    journal.append(
        run.journal, {"event": "excluded", "job_id": "42", "node": "node2", "detail": why}
    )
    lines = status.status_lines(*status.open_run("runs/a"))
    assert f"excluded     node2 ({why})" in lines
    journal.append(run.journal, {"event": "launched", "job_id": "43"})
    assert "excluded" not in "".join(status.status_lines(*status.open_run("runs/a")))


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
    assert job in status.status_lines(*status.open_run("runs/a"))[5]


def test_a_slurm_that_does_not_answer(fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool("scontrol", "exec sleep 60")
    monkeypatch.setattr(slurm, "TIMEOUT_S", 0.2)
    with pytest.raises(LaunchError, match=r"^scontrol requeue 1: no answer in 0\.2 s; try again$"):
        slurm.requeue("1")


def test_no_run_directory(project: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        status.open_run("shards")
    assert str(caught.value) == "shards: not a run directory: it has no config.yaml"


def test_cancel_asks_slurm(run: RunDir, fake_tool: FakeTool, tmp_path: Path) -> None:
    fake_tool("scancel", f'echo "$@" > {tmp_path}/cancelled')
    with pytest.raises(LaunchError) as caught:
        status.cancel_run(run)
    assert str(caught.value) == f"{run.path}: has no SLURM job; stop a local run with Ctrl-C"
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    assert status.cancel_run(run) == "42"
    assert (tmp_path / "cancelled").read_text() == "42\n"


def test_the_log_of_a_rank(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.rank_log(1).write_text("local\n")
    logs.print_log(run, 1)
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    (run.slurm / "42_1_log.out").write_text("slurm\n")
    logs.print_log(run, 1)
    assert capsys.readouterr().out == "local\nslurm\n"
    with pytest.raises(LaunchError) as caught:
        logs.print_log(run, 7)
    assert str(caught.value) == (
        f"{run.slurm}/42_7_log.out: no such log: has the job started, and has it a rank 7?"
    )


def test_following_ends_with_the_job_and_shows_all(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = tmp_path / "log"
    parts = iter([b"", b"one\n", b"two\n"])

    def is_over() -> bool:
        part = next(parts)
        if part:
            with log.open("ab") as file:
                file.write(part)
        return part == b"two\n"

    logs.follow_file(log, is_over, ask_every_s=0.01)
    assert capfdbinary.readouterr().out == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("state", "over"),
    [("PENDING", False), ("RUNNING", False), ("COMPLETING", False), ("TIMEOUT", True)],
)
def test_following_a_job_ends_when_it_cannot_run_again(
    run: RunDir, fake_tool: FakeTool, state: str, over: bool
) -> None:
    fake_tool("scontrol", f"echo JobId=42 JobState={state}")
    assert slurm.has_ended("42") is over


def test_following_a_local_run_ends_with_its_journal(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    run.rank_log(0).write_text("line\n")
    journal.append(run.journal, {"event": "started", "attempt": 1})
    journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": "finished"})
    logs.follow(run, 0, ask_every_s=0.01)
    assert capfd.readouterr().out == "line\n"
