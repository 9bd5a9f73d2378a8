"""`launch.py --sweep` on a real SLURM: jobs that wait in turn, restart, resume and are compared."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from processes import wait_until

from llada_sft.cluster import history
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.watch.sweep_table import sweep_rows
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TIMEOUT_S = 240
LAUNCH = [sys.executable, "launch.py", "--config", "config/demo.yaml"]
SMALL = ["data.prefetch_steps=0", "slurm.ranks_per_node=1", "log.every_n_steps=1"]
SWEEP = ["--sweep", "optim.lr=3e-3,1e-9", "--sweep-limit", "1"]


def causes(run: RunDir) -> list[Cause | None]:
    return [attempt.cause for attempt in history.read(run.journal).attempts]


def test_a_sweep_of_two(cluster: Cluster, project: Path) -> None:
    changes = [*SMALL, "run.name=sweep", "train.max_steps=40", "train.checkpoint_every_steps=20"]
    printed = cluster.run([*LAUNCH, *SWEEP, *changes], cwd=project)
    jobs = re.findall(r"^lr=\S+ +job (\d+)$", printed, re.MULTILINE)
    folder = project / "runs/sweep"
    runs = [RunDir(folder / name) for name in ("lr=0.003", "lr=1e-09")]
    try:
        assert wait_until(runs[0].metrics.exists, TIMEOUT_S)
        # One that is requeued keeps its turn.
        cluster.run(["scancel", "--signal=USR2", jobs[0]])
        assert wait_until(lambda: len(causes(runs[0])) == 2, TIMEOUT_S)
        waiting = cluster.job(jobs[1])
        assert (waiting["JobState"], waiting["Reason"]) == ("PENDING", "Dependency")
        states = {row.name: row.state for row in sweep_rows(folder)}
        assert states == {"lr=0.003": "RUNNING", "lr=1e-09": "PENDING"}
        cluster.wait_job(jobs[0], ["COMPLETED"], TIMEOUT_S)
        cluster.wait_job(jobs[1], ["COMPLETED"], TIMEOUT_S)
    finally:
        subprocess.run(["scancel", *jobs], env=cluster.env, check=False)
    assert causes(runs[0]) == [Cause.TOLD_TO_STOP, Cause.FINISHED]
    assert causes(runs[1]) == [Cause.FINISHED]
    table = cluster.run([sys.executable, "-m", "llada_sft", "status", str(folder)], cwd=project)
    assert [line.split()[:3] for line in table.splitlines()] == [
        ["run", "state", "step"],
        ["lr=0.003", "finished", "40"],
        ["lr=1e-09", "finished", "40"],
    ]
    # The same command does not start what is finished.
    again = cluster.run([*LAUNCH, *SWEEP, *changes], cwd=project)
    assert again.count("finished: left as it is") == 2
