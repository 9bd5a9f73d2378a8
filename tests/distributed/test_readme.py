"""README's "Your data in five minutes", as it stands there: from a .parquet file to a training."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llada_sft.config import load_config
from llada_sft.demo.__main__ import untrained_model
from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from tests.distributed.training_workers import losses
from tests.doc_commands import call_shell, commands_of

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]


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
    outputs = {
        " ".join(command.split()[:2]): call_shell(command, project)
        for command in commands_of("README.md", "Your data in five minutes")
    }
    assert list(outputs) == [
        "llada-sft shard",
        "cp config/local.yaml",
        "python launch.py",
        "llada-sft check",
        "llada-sft status",
    ]
    assert len(losses(RunDir(project / "runs/debug").path)) == 20
    assert "step 20" in outputs["llada-sft status"]
