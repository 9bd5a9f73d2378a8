"""One config by hand and on this machine, two nodes of two ranks: the same losses.

That a job of `launch.py` has them too, to the last bit of its weights, test_faults.py shows.
"""

import sys
from pathlib import Path

import pytest
from cluster import Cluster

from llada_sft.run_dir import RunDir
from llada_sft.training.metrics_csv import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
STEPS = 12
OVERRIDES = [
    "data.prefetch_steps=0",
    "train.checkpoint_every_steps=6",
    "train.validate_every_steps=6",
    "train.validation_max_rows=32",
    "log.every_n_steps=1",
    "log.tensorboard=false",
]


def losses(run: RunDir, column: str = "loss") -> list[float]:
    return [float(row[column]) for row in read_metrics(run.metrics) if row[column]]


@pytest.fixture(scope="module")
def local(cluster: Cluster, project: Path) -> RunDir:
    """All four ranks on this machine: what the other way is compared with."""
    command = [sys.executable, "launch.py", "--config", "config/demo.yaml", "--local", "--nodes=2"]
    cluster.run([*command, "run.name=local", f"train.max_steps={STEPS}", *OVERRIDES], cwd=project)
    run = RunDir(project / "runs/local")
    found = losses(run)
    assert len(found) == STEPS
    assert found[-1] < found[0]
    assert len(losses(run, "validation_loss")) == 2
    return run


def assert_same_losses(run: RunDir, local: RunDir) -> None:
    for column in ("loss", "validation_loss"):
        assert losses(run, column) == pytest.approx(losses(local, column), rel=1e-6)
    assert (run.checkpoints / "latest").read_text() == f"step_{STEPS}\n"


def test_submitted_by_hand(cluster: Cluster, project: Path, local: RunDir) -> None:
    python = Path(sys.executable).parent
    environment = f"ALL,PATH={python}:{cluster.env['PATH']}"
    command = ["sbatch", "--parsable", "--nodes=2", f"--export={environment}"]
    script = ["slurm/train.sbatch", "config/demo.yaml", "run.name=by_hand"]
    output = cluster.run([*command, *script, f"train.max_steps={STEPS}", *OVERRIDES], cwd=project)
    cluster.wait_job(output.strip(), ["COMPLETED"], timeout_s=300)
    assert_same_losses(RunDir(project / "runs/by_hand"), local)
