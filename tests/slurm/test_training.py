"""The demo's config on a real SLURM, two nodes of two ranks, in the three ways to start it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster

from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from llada_sft.training.metrics_csv import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
STEPS = 12
NODES = 2


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_demo(folder / "demo")
    return folder


def overrides(workspace: Path, name: str) -> list[str]:
    demo = workspace / "demo"
    return [
        f"run.root={workspace}",
        f"run.name={name}",
        f"model.path={demo / 'tokenizer'}",
        f"data.train={demo / 'data/train'}",
        f"data.validation={demo / 'data/heldout'}",
        f"train.max_steps={STEPS}",
        "train.checkpoint_every_steps=6",
        "train.validate_every_steps=6",
        "train.validation_max_rows=32",
        "log.every_n_steps=1",
        "log.tensorboard=false",
    ]


def python_first(environment: dict[str, str]) -> dict[str, str]:
    """Put this Python before others, as an activated environment does."""
    folder = str(Path(sys.executable).parent)
    return environment | {"PATH": f"{folder}{os.pathsep}{environment['PATH']}"}


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=python_first(environment), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def launch(workspace: Path, name: str, environment: dict[str, str], *flags: str) -> str:
    config = ["--config", "config/demo.yaml", "--nodes", str(NODES)]
    command = [sys.executable, "launch.py", *config, *overrides(workspace, name), *flags]
    return run(command, environment)


def losses(workspace: Path, name: str) -> list[float]:
    rows = read_metrics(RunDir(workspace / name).metrics)
    return [float(row["loss"]) for row in rows if row["loss"]]


@pytest.fixture(scope="module")
def local_losses(workspace: Path) -> list[float]:
    """The four ranks on this machine: what the two others are compared with."""
    launch(workspace, "local", dict(os.environ), "--local")
    found = losses(workspace, "local")
    assert len(found) == STEPS
    assert found[-1] < found[0]
    return found


def wait_until_completed(cluster: Cluster, job_id: str, log: Path) -> None:
    try:
        cluster.wait_job(job_id, {"COMPLETED"}, timeout_s=300)
    finally:
        print(log.read_text()[-4000:] if log.exists() else f"no {log}")


def test_launched_by_submitit(cluster: Cluster, workspace: Path, local_losses: list[float]) -> None:
    printed = launch(workspace, "submitted", cluster.env)
    found = re.search(r"^job +(\d+)$", printed, re.MULTILINE)
    assert found, printed
    job_id = found[1]
    run_dir = RunDir(workspace / "submitted")
    wait_until_completed(cluster, job_id, run_dir.slurm / f"{job_id}_0_log.out")
    assert losses(workspace, "submitted") == pytest.approx(local_losses, rel=1e-6)
    assert "--kill-on-bad-exit=1" in run_dir.sbatch.read_text()
    assert (run_dir.checkpoints / "latest").read_text() == f"step_{STEPS}\n"
    status = run([sys.executable, "-m", "llada_sft", "status", str(run_dir.path)], cluster.env)
    assert f"{STEPS}" in status


def test_submitted_by_hand(cluster: Cluster, workspace: Path, local_losses: list[float]) -> None:
    printed = run(
        [
            "sbatch",
            "--parsable",
            f"--nodes={NODES}",
            f"--output={workspace / 'sbatch.out'}",
            "slurm/train.sbatch",
            "config/demo.yaml",
            *overrides(workspace, "by_hand"),
        ],
        cluster.env,
    )
    wait_until_completed(cluster, printed.strip(), workspace / "sbatch.out")
    assert losses(workspace, "by_hand") == pytest.approx(local_losses, rel=1e-6)


def test_a_mistake_on_the_nodes_ends_the_job_with_one_line(
    cluster: Cluster, workspace: Path
) -> None:
    shards = workspace / "broken"
    shards.mkdir()
    for number in range(4):
        (shards / f"shard_{number}.jsonl").write_text('{"prompt": "reverse abc"}\n' * 40)
    printed = launch(workspace, "mistake", cluster.env, f"data.train={shards}")
    found = re.search(r"^job +(\d+)$", printed, re.MULTILINE)
    assert found, printed
    job = cluster.wait_job(found[1], {"FAILED"}, timeout_s=120)
    assert job["Restarts"] == "0"
    lines = {path.read_text().strip() for path in RunDir(workspace / "mistake").failures.iterdir()}
    expected = ": no 'response'; a record needs 'prompt' and 'response', or 'messages'"
    assert any(line.endswith(expected) for line in lines), lines
