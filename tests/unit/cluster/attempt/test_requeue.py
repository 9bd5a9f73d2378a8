"""Rank 0 has no scontrol (a container, or such a cluster): the batch script requeues the job."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.attempt import supervisor
from llada_sft.cluster.attempt.evidence import BatchJob
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.rank import stopping
from llada_sft.config import load_config
from llada_sft.errors import SupersededError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
JOB = BatchJob("42", 0, "node1", 2)


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Prepare a run whose rank 0 was signalled, has saved, and could not ask SLURM anything."""
    monkeypatch.setattr(stopping, "PAUSES_S", (0.0, 0.0, 0.0))
    found, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    supervisor.begin(found, JOB, 2)
    of_rank = {"attempt": 1, "job_id": "42"}
    signal = {**of_rank, "event": "signal", "signals": ["SIGUSR2"], "step": 7}
    saved = {**of_rank, "event": "checkpoint", "step": 7}
    ended = {**of_rank, "event": "ended", "cause": "told to stop", "exit_code": 1, "step": 7}
    for entry in (signal, saved, ended):
        journal.append(found.journal, entry)  # type: ignore[arg-type]
    return found


def end(run: RunDir, fake_tool: FakeTool, fields: str, requeue: str = "true") -> tuple[int, str]:
    """End the attempt; return the exit code, and the cause that the journal has then."""
    calls = run.path / "calls"
    fake_tool(
        "scontrol",
        f'echo "$@" >> {calls}\n[ "$1" != requeue ] || {requeue}\n'
        f'[ "$1" = requeue ] || echo "JobId=42 {fields}"',
    )
    code = supervisor.end(run, JOB, 1)
    return code, str([e for e in journal.read(run.journal) if e["event"] == "ended"][-1]["cause"])


def is_requeued(run: RunDir) -> bool:
    return "requeue 42" in (run.path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("fields", "cause", "requeued"),
    [
        ("JobState=RUNNING Restarts=0 PreemptTime=1795464891 EndTime=10", "preempted", True),
        ("JobState=RUNNING Restarts=0 PreemptTime=None EndTime=10", "time limit", True),
        ("JobState=COMPLETING Restarts=0 EndTime=0", "cancelled", False),
        ("JobState=COMPLETING Restarts=1 EndTime=0", "preempted", False),
    ],
)
def test_the_batch_script_asks_why_and_requeues(
    run: RunDir, fake_tool: FakeTool, fields: str, cause: str, requeued: bool
) -> None:
    assert end(run, fake_tool, fields) == (0, cause)
    assert is_requeued(run) == requeued
    # A run that is over is free for others.
    with pytest.raises(SupersededError) if cause == "cancelled" else nullcontext():
        supervisor.end(run, JOB, 0)


def test_a_host_without_scontrol_says_so(
    run: RunDir, fake_tool: FakeTool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert end(run, fake_tool, "", requeue="exit 1") == (1, "told to stop")
    said = capfd.readouterr().out
    assert said.startswith("not requeued by the batch script, either: scontrol")
    assert said.count("\n") == 1


def test_a_job_without_progress_is_given_up(
    run: RunDir, fake_tool: FakeTool, capfd: pytest.CaptureFixture[str]
) -> None:
    config = run.config.read_text()
    run.config.write_text(
        config.replace("attempts_without_progress: 3", "attempts_without_progress: 1").replace(
            "min_steps_per_attempt: 3", "min_steps_per_attempt: 9"
        )
    )
    fields = "JobState=RUNNING Restarts=0 PreemptTime=1795464891 EndTime=10"
    assert end(run, fake_tool, fields) == (70, "preempted")
    assert not is_requeued(run)
    assert journal.read(run.journal)[-1]["event"] == "given_up"
    assert "given up: 1 attempts in a row without progress" in capfd.readouterr().out
