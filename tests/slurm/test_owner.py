"""A run has one owner: whoever else starts it on a real SLURM is refused in one line.

What is trained is the demo's network, on CPU, two ranks on each of two nodes.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Launched
from processes import wait_until

from llada_sft.cluster import journal
from llada_sft.cluster.owner import owner_sight
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

TIMEOUT_S = 300
CONFIG = "config/demo.yaml"
# A checkpoint soon after the start: then the run trains.
EARLY = "train.checkpoint_every_steps=10"


def overrides(run: RunDir, max_steps: int) -> list[str]:
    """As `launched` gives them, with EARLY."""
    same = [f"run.name={run.path.name}", f"train.max_steps={max_steps}", "data.prefetch_steps=0"]
    return [*same, EARLY]


def contents(run: RunDir) -> dict[str, bytes]:
    """What nobody but the owner may change, and what exists only while somebody writes."""
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and "_pycache__" not in str(path)
    }


def submit(cluster: Cluster, project: Path, run: RunDir, *options: str) -> str:
    """Submit slurm/train.sbatch by hand for a run, with its config."""
    python = Path(sys.executable).parent
    script = ["slurm/train.sbatch", CONFIG, *overrides(run, 400)]
    command = ["sbatch", "--parsable", "--nodes=2", "--time=10", *options, *script]
    path = f"PATH={python}:{cluster.env['PATH']}"
    return cluster.run(["env", path, *command], cwd=project).strip()


def refused(cluster: Cluster, project: Path, job: str) -> str:
    """Wait until a job was refused, and return the line that it gave."""
    fields = cluster.wait_job(job, ["FAILED"], TIMEOUT_S)
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
    lines = (project / f"slurm-{job}.out").read_text().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def launch(cluster: Cluster, project: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "launch.py", "--config", CONFIG, "--nodes", "2", *words],
        cwd=project,
        env=cluster.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nobody_else_starts_a_run_that_has_an_owner(
    cluster: Cluster, launched: Launched, project: Path
) -> None:
    run, job = launched("owned", 400, EARLY, "slurm.extra={begin: now+3600}")
    before = contents(run)
    # A job by hand beside one that is pending.
    line = refused(cluster, project, submit(cluster, project, run))
    assert line.startswith(f"run {run.path} is trained by job {job}, PENDING since ")
    assert contents(run) == before
    # One by hand that is pending when the other begins.
    held = submit(cluster, project, run, "--hold")
    cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    nodes = cluster.wait_job(job, ["RUNNING"], TIMEOUT_S)["NodeList"]
    assert wait_until((run.checkpoints / "latest").exists, TIMEOUT_S)
    cluster.run(["scontrol", "release", held])
    running = f"run {run.path} is trained by job {job}, RUNNING on {nodes} since "
    assert refused(cluster, project, held).startswith(running)
    # By hand, on the login node.
    for words in (["--prepare"], [], ["--local", "--nodes", "1"]):
        second = launch(cluster, project, *words, *overrides(run, 400))
        out, error = second.communicate(timeout=TIMEOUT_S)
        assert (second.returncode, out) == (2, "")
        assert error.startswith(running), error
        assert error.count("\n") == 1
    entries = journal.read(run.journal)
    assert {entry["job_id"] for entry in entries if "job_id" in entry} == {job}
    assert not [entry for entry in entries if entry["event"] == "ended"]
    assert cluster.job(job)["JobState"] == "RUNNING"
    # It ends by itself, and its run is free.
    cluster.run(["scancel", job])
    cluster.wait_job(job, ["CANCELLED"], TIMEOUT_S)
    assert wait_until(lambda: owner_sight.line(run) == "nobody", TIMEOUT_S)
    causes = [e.get("cause") for e in journal.read(run.journal) if e["event"] == "ended"]
    assert causes == ["cancelled"]


def test_of_two_launches_at_once_one_submits(cluster: Cluster, project: Path) -> None:
    words = ["run.name=twice", "train.max_steps=400", "slurm.extra={begin: now+3600}"]
    both = [launch(cluster, project, *words) for _ in range(2)]
    done = [(*one.communicate(timeout=TIMEOUT_S), one.returncode) for one in both]
    (job,) = re.findall(r"^job +(\d+)$", "".join(out for out, _, _ in done), re.MULTILINE)
    try:
        assert Counter(code for _, _, code in done) == {0: 1, 2: 1}
        (error,) = (error for _, error, code in done if code)
        assert re.match(rf"run {project}/runs/twice is (being launched|trained) by ", error)
        assert error.count("\n") == 1
        queue = cluster.run(["squeue", "--noheader", "--name=twice", "--format=%i"])
        assert queue.split() == [job]
    finally:
        cluster.run(["scancel", job])


def test_of_an_array_one_task_trains(cluster: Cluster, project: Path) -> None:
    run = RunDir(project / "runs/array")
    array = submit(cluster, project, run, "--array=0-1", f"--output={project}/array-%a.out")
    tasks = [f"{array}_{task}" for task in range(2)]
    try:
        assert wait_until(lambda: "FAILED" in states(cluster, tasks), TIMEOUT_S)
        loser = states(cluster, tasks).index("FAILED")
        assert cluster.job(tasks[loser])["ExitCode"] == "2:0"
        winner = cluster.job(tasks[1 - loser])["JobId"]
        (line,) = (project / f"array-{loser}.out").read_text().splitlines()
        assert line.startswith(f"run {run.path} is trained by job {winner}, RUNNING on ")
        assert wait_until((run.checkpoints / "latest").exists, TIMEOUT_S)
        started = [e for e in journal.read(run.journal) if e["event"] == "started"]
        assert [entry["job_id"] for entry in started] == [winner]
    finally:
        cluster.run(["scancel", array])


def states(cluster: Cluster, jobs: list[str]) -> list[str]:
    return [cluster.job(job)["JobState"] for job in jobs]
