"""The scripts of slurm/ that people submit by hand, each on a real SLURM.

slurm/train.sbatch is run by test_losses.py and test_owner.py, slurm/sample.sbatch by
test_sample.py.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster

from llada_sft.cluster import history
from llada_sft.cluster.causes import Cause
from llada_sft.run_dir import RunDir
from tests.unit.evaluation.project import write_model, write_tasks

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240
SMALL = ["slurm.ranks_per_node=1", "data.prefetch_steps=0", "train.max_steps=3"]
# Submits a script and waits for the job's end; gives its fields and its log.
Submitted = Callable[..., tuple[dict[str, str], str]]


@pytest.fixture
def submitted(cluster: Cluster) -> Submitted:
    environment = {
        **cluster.env,
        "PATH": f"{Path(sys.executable).parent}:{cluster.env['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }

    def submit(folder: Path, script: str, *arguments: str, ends: str) -> tuple[dict[str, str], str]:
        done = subprocess.run(
            ["sbatch", "--parsable", str(ROOT / "slurm" / script), *arguments],
            cwd=folder,
            env={**environment, "HF_DATASETS_CACHE": str(folder / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        job = done.stdout.strip()
        fields = cluster.wait_job(job, [ends], TIMEOUT_S)
        return fields, (folder / f"slurm-{job}.out").read_text()

    return submit


def test_debug_then_export(submitted: Submitted, project: Path) -> None:
    fields, log = submitted(project, "debug.sbatch", "config/demo.yaml", *SMALL, ends="COMPLETED")
    run = RunDir(project / f"runs/debug-{fields['JobId']}")
    last = history.read(run.journal).last
    assert last is not None
    assert (last.cause, last.last_step, last.nodes) == (Cause.FINISHED, 3, fields["NodeList"])
    assert "\nstep 3/3 " in log
    out = project / "an export; touch pwned"
    arguments = [str(run.path), str(out), "--dtype", "fp32"]
    _, log = submitted(project, "export.sbatch", *arguments, ends="COMPLETED")
    assert (out / "model.safetensors").exists(), log
    # Once more is a mistake.
    fields, log = submitted(project, "export.sbatch", *arguments, ends="FAILED")
    assert fields["ExitCode"] == "2:0"
    assert log.endswith("slurm/export.sbatch: llada-sft export ended with exit code 2\n")
    assert not list(project.glob("pwned"))


def test_debug_of_a_config_with_mistakes(submitted: Submitted, project: Path) -> None:
    bad = ["train.epochs=$(touch pwned)", "train.max_steps='; touch pwned'"]
    fields, log = submitted(project, "debug.sbatch", "config/demo.yaml", *bad, ends="FAILED")
    assert fields["ExitCode"] == "2:0"
    assert "train.epochs: must be a whole number, got '$(touch pwned)'" in log
    assert log.endswith("slurm/debug.sbatch: launch.py ended with exit code 2\n")
    assert not list(project.glob("pwned"))


@pytest.mark.slow
def test_eval(submitted: Submitted, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_tasks(tmp_path / "tasks")
    options = ["--include-path", "tasks", "generation.gen_length=8", "generation.block_length=4"]
    arguments = ["model", "--tasks", "reverse", *options]
    submitted(tmp_path, "eval.sbatch", *arguments, ends="COMPLETED")
    (results,) = (tmp_path / "model/eval").glob("reverse_*/results.json")
    assert results.stat().st_size > 0
    fields, log = submitted(tmp_path, "eval.sbatch", "model", "--tasks", "none", ends="FAILED")
    assert fields["ExitCode"] == "2:0"
    assert log.endswith("slurm/eval.sbatch: llada-sft eval ended with exit code 2\n")
