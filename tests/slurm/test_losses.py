"""One config by hand and on this machine, two nodes of two ranks: the same losses.

By hand is done in the worst way: from a shell inside a job, with a setup.sh that sets everything,
and with a working tree that is broken before the job is requeued.

That a job of `launch.py` has them too, to the last bit of its weights, test_faults.py shows.
"""

import shutil
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from processes import wait_until

from llada_sft.cluster import journal
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_csv import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
STEPS = 12
# Each of these has once ended or misled a batch script.
HOSTILE_SETUP = """
set -euo pipefail -f
shopt -s failglob
trap 'exit 3' EXIT TERM
cd /
srun() { false; }
IFS=x
export status=9 MASTER_PORT=1 PATH=/nowhere SLURM_NTASKS=1
exec > /dev/null 2>&1
"""
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


@pytest.fixture
def checkout(project: Path, tmp_path: Path) -> Path:
    """A working tree that may be edited."""
    for name in ("utils", "demo"):
        (tmp_path / name).symlink_to(project / name)
    for name in ("config", "slurm"):
        shutil.copytree(project / name, tmp_path / name)
    shutil.copyfile(project / "launch.py", tmp_path / "launch.py")
    (tmp_path / "setup.sh").write_text(HOSTILE_SETUP)
    return tmp_path


def test_submitted_by_hand_from_a_job_and_requeued_after_an_edit(
    cluster: Cluster, checkout: Path, local: RunDir
) -> None:
    """From inside another job, whose variables say one task and other memory."""
    tools = f"PATH={Path(sys.executable).parent}:{cluster.env['PATH']}"
    inside = ["srun", "--ntasks=1", "--mem-per-cpu=100", "--cpu-bind=none", "--distribution=cyclic"]
    command = ["sbatch", "--parsable", "--nodes=2"]
    command += [f"--export=ALL,{tools},XDG_STATE_HOME={checkout}/state"]
    script = ["slurm/train.sbatch", "config/demo.yaml", "run.name=by_hand", "slurm.setup=setup.sh"]
    changes = [f"train.max_steps={STEPS}", *OVERRIDES]
    job = cluster.run([*inside, *command, *script, *changes], cwd=checkout).strip()
    run = RunDir(checkout / "runs/by_hand")
    # The ranks have yet to load their libraries.
    assert wait_until(lambda: "started" in events(run), timeout_s=120), cluster.job(job)
    (checkout / "launch.py").unlink()
    (checkout / "config/demo.yaml").write_text("run: {name: another}\n")
    (checkout / "setup.sh").write_text("exit 3\n")
    cluster.run(["scontrol", "requeue", job])
    fields = cluster.wait_job(job, ["COMPLETED"], timeout_s=300, restarts=1)
    assert fields["Restarts"] == "1"
    assert_same_losses(run, local)
    started = [e for e in journal.read(run.journal) if e["event"] == "started"]
    assert [(e["restarts"], e["world_size"]) for e in started] == [(0, 4), (1, 4)]


def events(run: RunDir) -> list[str]:
    return [entry["event"] for entry in journal.read(run.journal)]
