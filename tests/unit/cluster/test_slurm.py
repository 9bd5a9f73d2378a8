"""Questions to SLURM: what they inherit of the shell, and which job an answer is of."""

from pathlib import Path

import pytest

from llada_sft.cluster import slurm
from llada_sft.errors import LaunchError
from tests.unit.cluster.conftest import FakeTool

SHELL = {
    "SQUEUE_FORMAT": "%i",
    "SACCT_FORMAT": "jobid",
    "SINFO_FORMAT": "%n",
    "SLURM_BITSTR_LEN": "0",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_CONF": "/etc/slurm/slurm.conf",
}


def test_a_query_has_none_of_the_users_own_formats(
    fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    fake_tool("scontrol", "env")
    inherited = dict(line.partition("=")[::2] for line in slurm.run_tool("scontrol").splitlines())
    kept = {name: inherited[name] for name in SHELL if name in inherited}
    # Times are seconds since 1970; how to reach SLURM stays.
    assert kept == {"SLURM_TIME_FORMAT": "%s", "SLURM_CONF": "/etc/slurm/slurm.conf"}


@pytest.mark.parametrize(
    ("job_id", "state"), [("7", "PENDING"), ("8", "RUNNING"), ("9", "RUNNING")]
)
def test_of_the_tasks_of_an_array_the_one_that_was_asked_for(
    fake_tool: FakeTool, job_id: str, state: str
) -> None:
    fake_tool("scontrol", "echo JobId=8 JobState=RUNNING; echo JobId=7 JobState=PENDING")
    assert slurm.job_fields(job_id)["JobState"] == state


def test_a_job_that_slurm_has_forgotten(fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    assert slurm.job_fields("7") == {}
    fake_tool("scontrol", "echo Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(LaunchError, match="Unable to contact"):
        slurm.job_fields("7")


def test_an_exclusion_that_slurm_accepts_and_does_not_keep(
    fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tool("scontrol", "echo JobId=42 ExcNodeList=")
    monkeypatch.setattr(slurm, "EXCLUDE_PAUSE_S", 0)
    with pytest.raises(LaunchError) as caught:
        slurm.exclude("42", "node2")
    assert str(caught.value) == "job 42: SLURM does not take node node2 into ExcNodeList"


def test_a_command_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "squeue"
    tool.write_bytes(b"\0")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"^squeue: cannot be run: Exec format error$"):
        slurm.run_tool("squeue")
