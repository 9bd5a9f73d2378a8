"""`llada-sft eval --slurm`: a job of two ranks, interrupted in the middle, that continues."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from tests.unit.evaluation.project import WORDS, write_model, write_tasks

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]
NUM_REQUESTS = {"reverse": len(WORDS), "choose": 3 * len(WORDS)}
OPTIONS = [
    "slurm.nodes=2",
    "slurm.ranks_per_node=1",
    "slurm.cpus_per_rank=1",
    "slurm.gpus_per_node=0",
    "slurm.time_min=10",
    "generation.gen_length=8",
    "generation.block_length=4",
    # A chunk for each request.
    "generation.batch_size=1",
    "likelihood.max_tokens=1",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_model(folder / "model")
    write_tasks(folder / "tasks")
    return folder


def submit(project: Path, results: str) -> str:
    """Submit an evaluation as a user does, and return the job's number."""
    command = [sys.executable, "-m", "llada_sft", "eval", "model", "--tasks", "reverse,choose"]
    done = subprocess.run(
        [*command, "--include-path", "tasks", "--results", results, "--slurm", *OPTIONS],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_DATASETS_CACHE": str(project / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.fullmatch(r"submitted job (\d+); its log: \S+\n", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return found.group(1)


def entries(results: Path, task: str) -> Iterator[dict[str, Any]]:
    for file in results.glob(f"{task}_*/answers/*.jsonl"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def reach_the_time_limit(cluster: Cluster, job_id: str, results: Path) -> None:
    """Send the signal that SLURM sends before it."""
    cluster.run(["scancel", "--signal=USR2", "--batch", job_id])


def kill_a_rank(cluster: Cluster, job_id: str, results: Path) -> None:
    (pid, *_) = (
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdecimal() and is_rank(process, results)
    )
    os.kill(pid, signal.SIGKILL)


def is_rank(process: Path, results: Path) -> bool:
    """Return whether a process is a rank of an evaluation, and not srun, which starts it."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[1:4] == [b"-m", b"llada_sft.evaluation", b"rank"] and str(results) in str(words[4])


@pytest.mark.parametrize("interrupt", [reach_the_time_limit, kill_a_rank])
def test_a_job_that_is_interrupted_continues(
    project: Path, cluster: Cluster, interrupt: Callable[[Cluster, str, Path], None]
) -> None:
    results = project / interrupt.__name__
    job_id = submit(project, results.name)
    log = results / f"slurm/{job_id}.log"
    deadline = time.monotonic() + 240
    while len(list(entries(results, "reverse"))) < 2:
        assert time.monotonic() < deadline, log.read_text() if log.exists() else cluster.job(job_id)
        time.sleep(0.02)
    interrupt(cluster, job_id, results)
    before = sum(len(list(entries(results, task))) for task in NUM_REQUESTS)
    assert before < sum(NUM_REQUESTS.values())
    cluster.wait_job(job_id, ["COMPLETED"], timeout_s=280, restarts=1)
    for task, number in NUM_REQUESTS.items():
        keys = [entry["key"] for entry in entries(results, task)]
        assert len(keys) == len(set(keys)) == number, log.read_text()
        (file,) = results.glob(f"{task}_*/results.json")
        samples = json.loads(file.read_text())["n-samples"][task]
        assert samples == {"original": len(WORDS), "effective": len(WORDS)}
        ranks = {path.name[:11] for path in file.parent.glob("answers/*")}
        assert ranks == {"rank_0_of_2", "rank_1_of_2"}
    failed = (log.parent / f"{job_id}.failures").exists()
    assert failed == (interrupt is kill_a_rank)


def test_a_cancelled_job_stays_cancelled(project: Path, cluster: Cluster) -> None:
    results = project / "cancelled"
    job_id = submit(project, results.name)
    deadline = time.monotonic() + 240
    while not list(entries(results, "reverse")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cluster.run(["scancel", job_id])
    job = cluster.wait_job(job_id, ["CANCELLED"], timeout_s=60)
    assert job["Restarts"] == "0"
    assert not list(results.glob("*/results.json"))


def test_a_mistake_ends_the_job_without_a_requeue(project: Path, cluster: Cluster) -> None:
    results = project / "mistaken"
    (project / "tasks/words.jsonl").rename(project / "words.jsonl")
    try:
        job_id = submit(project, results.name)
        job = cluster.wait_job(job_id, ["FAILED"], timeout_s=240)
    finally:
        (project / "words.jsonl").rename(project / "tasks/words.jsonl")
    assert (job["ExitCode"], job["Restarts"]) == ("2:0", "0")
    log = (results / f"slurm/{job_id}.log").read_text()
    assert "--tasks: reverse: cannot be loaded: FileNotFoundError" in log
