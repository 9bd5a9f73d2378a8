"""`launch.py` and `slurm/train.sbatch` on a real SLURM: to the end, through a stop, and cancelled.

What is trained is the demo's network, on CPU, two ranks on each of two nodes.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster

from llada_sft.cluster import journal
from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder to launch from: what a checkout has, and the demo's data."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("launch.py", "config", "slurm", "utils"):
        (folder / name).symlink_to(ROOT / name)
    write_demo(folder / "demo")
    return folder


@pytest.fixture
def launched(cluster: Cluster, project: Path) -> Iterator[Callable[..., tuple[RunDir, str]]]:
    """Launch the demo on two nodes, and cancel it when the test is over."""
    jobs: list[str] = []

    def launch(name: str, max_steps: int, *more: str) -> tuple[RunDir, str]:
        command = [sys.executable, "launch.py", "--config", "config/demo.yaml", "--nodes", "2"]
        changes = [f"run.name={name}", f"train.max_steps={max_steps}", *more]
        output = cluster.run([*command, *changes], cwd=project)
        found = re.search(r"^job +(\d+)$", output, re.MULTILINE)
        assert found, output
        jobs.append(found[1])
        return RunDir(project / "runs" / name), found[1]

    yield launch
    for job in jobs:
        subprocess.run(["scancel", job], env=cluster.env, check=False)


def causes(run: RunDir) -> list[str | None]:
    return [e.get("cause") for e in journal.read(run.journal) if e["event"] == "ended"]


def wait_for_step_20(run: RunDir, job: str) -> None:
    log = run.slurm / f"{job}_0_log.out"
    deadline = time.monotonic() + TIMEOUT_S
    while not (log.exists() and "step 20/" in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.5)


Launched = Callable[..., tuple[RunDir, str]]


def test_usr2_saves_and_requeues_once(cluster: Cluster, launched: Launched) -> None:
    run, job = launched("requeued", 60)
    wait_for_step_20(run, job)
    cluster.run(["scancel", "--signal=USR2", job])
    fields = cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S, restarts=1)
    assert fields["Restarts"] == "1"
    assert causes(run) == ["requeued after SIGUSR2", "finished"]
    assert "resuming from" in (run.slurm / f"{job}_0_log.out").read_text()


def test_scancel_saves_and_does_not_requeue(cluster: Cluster, launched: Launched) -> None:
    run, job = launched("cancelled", 400)
    wait_for_step_20(run, job)
    cluster.run([sys.executable, "-m", "llada_sft", "cancel", str(run.path)])
    fields = cluster.wait_job(job, ["CANCELLED"], TIMEOUT_S)
    assert (fields["Restarts"], causes(run)) == ("0", ["cancelled"])
    assert list(run.checkpoints.glob("step_*/checkpoint.json"))


def test_a_mistake_ends_the_job_with_code_2(cluster: Cluster, launched: Launched) -> None:
    # Held back until the mistake is made.
    run, job = launched("mistake", 20, "slurm.extra={begin: now+3600}")
    run.config.write_text(run.config.read_text().replace("epochs: 3", "epochs: x"))
    cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    fields = cluster.wait_job(job, ["FAILED"], TIMEOUT_S)
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
    message = "train.epochs: must be a whole number, got 'x'"
    assert message in run.failure(0).read_text()


def test_the_batch_script_by_hand(cluster: Cluster, project: Path) -> None:
    python = Path(sys.executable).parent
    script = ["slurm/train.sbatch", "config/demo.yaml", "run.name=hand", "train.max_steps=20"]
    path = f"ALL,PATH={python}:{cluster.env['PATH']}"
    output = cluster.run(["sbatch", "--nodes=2", f"--export={path}", *script], cwd=project)
    cluster.wait_job(output.split()[-1], ["COMPLETED"], TIMEOUT_S)
    assert causes(RunDir(project / "runs/hand")) == ["finished"]
