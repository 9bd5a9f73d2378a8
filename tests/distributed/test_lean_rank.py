"""A rank's first step, without the libraries that its libraries import for nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.launch.ports import free_port
from llada_sft.config import load_config
from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_csv import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
RANK = """
import json, os, sys
from llada_sft.cluster import run_rank
from llada_sft.cluster.rank.watchdog import Watchdog

def pulse(self, phase, step):
    if phase == "step" and step == 1:
        print("MODULES " + json.dumps(list(sys.modules)), flush=True)
        os.killpg(0, 9)

Watchdog.pulse = pulse
run_rank(sys.argv[1])
"""
# Each has its own way in: torchmetrics and matplotlib through Lightning, dynamo through Lightning,
# torch's optimizers and transformers, inductor through DeepSpeed's Muon, S3 through TensorBoard.
UNUSED = {
    "torchmetrics.functional",
    "torchmetrics.classification",
    "matplotlib",
    "torch._dynamo.config",
    "torch._inductor",
    "boto3.session",
    "s3fs",
    "pandas",
    "scipy",
    "wandb",
}


def test_a_rank_makes_its_first_step_without_what_it_does_not_use(tmp_path: Path) -> None:
    for name in ("slurm", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_demo(tmp_path / "demo")
    config = load_config(ROOT / "config/demo.yaml", ["slurm.ranks_per_node=1"])
    run, _ = prepare.create(config, tmp_path, ["launch.py"])
    journal.append(run.journal, {"event": "started", "attempt": 1})
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "NODE_RANK": "0"}
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [sys.executable, "-c", RANK, str(run.path)],
        env=kept | place | there,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("MODULES ")]
    assert lines, done.stdout + done.stderr
    modules = set(json.loads(lines[0].partition(" ")[2]))
    assert {"deepspeed.runtime.zero.muon.original_muon", "tensorboard", "lightning"} <= modules
    assert not modules & UNUSED


@pytest.mark.slow
def test_a_rank_that_compiles_loads_the_compiler_and_trains_the_same(tmp_path: Path) -> None:
    """Its import fails where parameters are partitioned when they are created."""
    write_demo(tmp_path / "demo")
    losses = []
    for chosen in ("off", "on"):
        overrides = {
            "run.name": chosen,
            "run.root": tmp_path,
            "model.path": tmp_path / "demo/tokenizer",
            "model.compile": chosen,
            "data.train": tmp_path / "demo/data/train",
            "data.validation": "null",
            "train.max_steps": 2,
            "slurm.ranks_per_node": 1,
            "log.every_n_steps": 1,
        }
        launch = [sys.executable, "launch.py", "--config", "config/demo.yaml", "--local"]
        launch += [f"{key}={value}" for key, value in overrides.items()]
        done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = read_metrics(RunDir(tmp_path / chosen).metrics)
        losses.append([float(row["loss"]) for row in rows if row["loss"]])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
