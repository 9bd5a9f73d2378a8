"""Why a job waits and when it may start, on a real SLURM: `status` of one run and of all."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Launched
from processes import wait_until

from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
# Longer than its own time limit: it ends when the test does.
SLEEP = ["--wrap=sleep 600", "--exclusive", "--nodes=4", "--time=30", "--output=/dev/null"]


@pytest.fixture
def full_cluster(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """Give all nodes to another job."""
    job = cluster.run(["sbatch", "--parsable", *SLEEP], cwd=tmp_path).strip()
    wait_until(lambda: "RUNNING" in cluster.run(["squeue", "-h", "-j", job, "-o", "%T"]), 60)
    yield job
    subprocess.run(["scancel", job], env=cluster.env, check=False)


def status(run: RunDir, *arguments: str) -> str:
    """Call the command where the run was launched."""
    command = [sys.executable, "-m", "llada_sft", "status", *arguments]
    folder = run.path.parent.parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_job_that_waits_for_nodes(
    full_cluster: str, cluster: Cluster, launched: Launched
) -> None:
    run, job = launched("waiting", 20, "slurm.time_min=10")
    held, held_job = launched("held", 20)
    cluster.run(["scontrol", "uhold", held_job])

    def is_explained() -> bool:
        lines = status(run, "waiting").splitlines()
        waits = [line for line in lines if line.startswith("waits        ")]
        return any("Resources: it is among the next" in line for line in waits)

    # SLURM gives the reason, and later the estimate, when its scheduler has looked at the job.
    wait_until(is_explained, 60)
    wait_until(lambda: "(SLURM's estimate)" in status(run, "waiting"), 90)
    assert f"job          {job} PENDING" in status(run, "waiting")
    one = json.loads(status(run, "waiting", "--json"))
    assert (one["state"], one["pending_reason"], one["attempt"]) == ("pending", "Resources", None)
    assert one["estimated_start"] > "2020"
    # All runs, by squeue.
    runs = {found["name"]: found for found in json.loads(status(run, "--json"))["runs"]}
    assert runs["waiting"]["pending_reason"] == "Resources"
    assert runs["waiting"]["estimated_start"] == one["estimated_start"]
    assert runs["held"]["pending_words"].endswith(f"scontrol release {held_job}")
    assert f"held ({runs['held']['pending_reason']})" in status(held, "held")
