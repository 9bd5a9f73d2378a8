"""The commands and the Python of docs/use.md, run as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.config import load_config
from llada_sft.config.reader import dump_config
from llada_sft.model.configuration import read_config
from llada_sft.run_dir import RunDir
from tests.unit.training.checkpoint_files import write_checkpoint

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/use.md").read_text(), re.DOTALL)
# The job is run by tests/slurm/test_sample.py.
SHELL = "".join(text for kind, text in BLOCKS if kind == "bash" and "sbatch" not in text)
PYTHON = "".join(text for kind, text in BLOCKS if kind == "python")


@pytest.fixture
def project(model_dir: Path, tmp_path: Path) -> Path:
    """A folder with a run that has a checkpoint, and a file of prompts."""
    run = RunDir(tmp_path / "runs/mine")
    run.path.mkdir(parents=True)
    overrides = [f"model.path={model_dir}", "model.size=null", "model.init=pretrained"]
    run.config.write_text(dump_config(load_config(ROOT / "config/demo.yaml", overrides)))
    shapes = read_config(model_dir).architecture.parameter_shapes()
    write_checkpoint(run.checkpoints, 2, network=shapes)
    (tmp_path / "prompts.jsonl").write_text('"abc"\n{"prompt": "fe", "response": "ef"}\n')
    return tmp_path


@pytest.mark.slow
def test_commands_and_python_run(project: Path) -> None:
    # The tiny model knows 64 positions.
    script = re.sub(r"(llada-sft (sample|chat) \S+)", r"\1 --gen-length 8", SHELL)
    script = script.replace("--gen-length 64 ", "")
    commands = f'set -e\nllada-sft() {{ "{sys.executable}" -m llada_sft "$@"; }}\n{script}'
    shell = run(["bash", "-c", commands], project, stdin="/quit\n")
    assert "exported" in shell and len(script.splitlines()) >= 5
    rows = [json.loads(line) for line in (project / "answers.jsonl").read_text().splitlines()]
    assert [row.get("reference") for row in rows] == [None, "ef"]
    python = PYTHON.replace('torch.device("cuda")', 'torch.device("cpu")')
    python = python.replace("256", "32").replace("torch.bfloat16", "torch.float32")
    given = "import torch\ninput_ids = torch.tensor([[1, 2]])\nattention_mask = input_ids > 0\n"
    run([sys.executable, "-c", f"{given}{python}\nassert len(answers) == 2"], project)


def run(command: list[str], folder: Path, stdin: str = "") -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout
