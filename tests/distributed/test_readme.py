"""README's "Your data in five minutes", as it stands there: from a .parquet file to a training."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llada_sft.config import load_config
from llada_sft.demo.__main__ import untrained_model
from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands(title: str) -> list[str]:
    """The commands of a section."""
    section = README.partition(f"## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", "").splitlines()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout, with a user's rows in a .parquet file and a small model under the name of 8B."""
    for name in ("launch.py", "config", "slurm", "utils"):
        target = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        target(ROOT / name, tmp_path / name)
    write_demo(tmp_path / "demo")
    lines = (tmp_path / "demo/data/train/shard_000.jsonl").read_text().splitlines()
    pq.write_table(pa.Table.from_pylist(list(map(json.loads, lines))), tmp_path / "chats.parquet")
    model = tmp_path / "models/LLaDA-8B-Base"
    # As long a context as the real one has: config/local.yaml has longer rows than the demo.
    changes = [f"model.path={tmp_path / 'demo/tokenizer'}", "model.size.max_sequence_length=4096"]
    config = load_config(tmp_path / "config/demo.yaml", changes)
    untrained_model(config).save_pretrained(model)
    shutil.copytree(tmp_path / "demo/tokenizer", model, dirs_exist_ok=True)
    return tmp_path


def test_your_data_in_five_minutes(project: Path) -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outputs = {}
    for command in commands("Your data in five minutes"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=project,
            env=os.environ | {"PATH": tools},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        outputs[" ".join(command.split()[:2])] = done.stdout
    assert list(outputs) == [
        "llada-sft shard",
        "cp config/local.yaml",
        "python launch.py",
        "llada-sft check",
        "llada-sft status",
    ]
    assert len(losses(RunDir(project / "runs/debug").path)) == 20
    assert "step 20" in outputs["llada-sft status"]
