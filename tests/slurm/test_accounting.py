"""A cluster with slurmdbd: what sacct says there, and what the profile needs."""

import re
from pathlib import Path

import processes
import pytest
from cluster import PROFILE_VARIABLE, Cluster, ClusterError, wanted_profile

pytestmark = pytest.mark.slurm

TIMEOUT_S = 60


def test_sacct_knows_a_job_and_its_steps(accounting_cluster: Cluster, tmp_path: Path) -> None:
    command = ["sbatch", "--parsable", "--output=out", "--wrap=srun false"]
    job = accounting_cluster.run(command, cwd=tmp_path).strip()

    def rows() -> list[str]:
        fields = "--format=JobIDRaw,Account,State,ExitCode"
        return accounting_cluster.run(["sacct", "-nP", f"--jobs={job}", fields]).splitlines()

    expected = [f"{job}{step}|tests|FAILED|1:0" for step in ("", ".batch", ".0")]
    assert processes.wait_until(lambda: rows() == expected, TIMEOUT_S), rows()


def test_stop_leaves_no_process(slurm_installed: None) -> None:
    # Its own cluster: that of the other tests goes on.
    if problem := Cluster.missing("accounting"):
        pytest.skip(problem)
    with Cluster("stopped", "accounting") as cluster:
        names = {
            Path(f"/proc/{pid}/comm").read_text().strip()
            for pid in processes.find_processes(cluster.state_dir)
        }
        assert {"mariadbd", "slurmdbd", "slurmctld", "slurmd", "munged"} <= names
    assert processes.find_processes(cluster.state_dir) == []


def test_plain_profile_has_no_sacct(cluster: Cluster) -> None:
    if cluster.profile != "plain":
        pytest.skip("the tests run with accounting")
    with pytest.raises(ClusterError, match="Slurm accounting storage is disabled"):
        cluster.run(["sacct"])


def test_unknown_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROFILE_VARIABLE, "accountin")
    message = f"{PROFILE_VARIABLE}: must be plain or accounting, got 'accountin'"
    with pytest.raises(ClusterError, match=re.escape(message)):
        wanted_profile()


def test_missing_accounting_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "munged",
        "mungekey",
        "slurmctld",
        "slurmd",
        "sbatch",
        "srun",
        "scontrol",
        "sinfo",
    ):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr("cluster.SEARCH_PATH", str(tmp_path))
    problem = Cluster.missing("accounting")
    assert problem
    assert problem.startswith("SLURM is not installed (no slurmdbd, sacct, ")
    assert "munge slurmdbd mariadb-server" in problem
