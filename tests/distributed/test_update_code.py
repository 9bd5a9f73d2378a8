"""A run of an older version ends with a mistake in its hook; moved and updated, it trains on."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
# Two examples of each row, until a tenth one comes.
HOOK = """
from itertools import count

from llada_sft.data.records import encode_record

number = count(1)


def process_data(record, tokenizer, max_length):
    if next(number) == 10:
        raise ValueError("ten")
    return [encode_record(record, tokenizer)] * 2
"""
FIXED = """
from llada_sft.data.records import encode_record


def process_data(record, tokenizer, max_length):
    return encode_record(record, tokenizer)
"""
OVERRIDES = [
    "run.name=old",
    "train.max_steps=12",
    # Seven rows and a half.
    "train.checkpoint_every_steps=5",
    "train.validate_every_steps=1000",
    "data.hook=hook.py",
    "data.validation=null",
    # An odd number of examples in a step: half of a row waits for the next one.
    "train.micro_batch_size=3",
    "train.accumulate_grad_batches=1",
    "data.prefetch_steps=0",
    "log.every_n_steps=1",
]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A checkout of the version before the door, and a project in it."""
    with tarfile.open(ROOT / "tests/golden/older_package.tar.gz") as package:
        package.extractall(tmp_path, filter="data")
    shutil.copy(ROOT / "launch.py", tmp_path)
    for name in ("config", "slurm", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_demo(tmp_path / "demo")
    (tmp_path / "hook.py").write_text(HOOK)
    return tmp_path


def call(project: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_run_of_an_older_version_trains_on(older: Path) -> None:
    # launch.py imports the package beside it.
    first = call(older, "launch.py", "--config", "config/demo.yaml", "--local", *OVERRIDES)
    assert first.returncode == 2, first.stderr
    assert "hook raised ValueError: ten" in first.stderr
    before, after = RunDir(older / "runs/old"), RunDir(older / "elsewhere/new name")
    assert [path.name for path in before.checkpoints.glob("step_?")] == ["step_5"]
    # The project's package is of no more use; and the run is moved.
    shutil.rmtree(older / "llada_sft")
    after.path.parent.mkdir()
    before.path.rename(after.path)
    (older / "hook.py").write_text(FIXED)

    resume = ["-m", "llada_sft", "resume", str(after.path), "--local"]
    refused = call(older, *resume, PYTHONPATH=str(ROOT))
    assert refused.returncode == 2
    assert re.search(r"^\S.* older llada_sft .* --update-code$", refused.stderr)
    updated = call(older, *resume, "--update-code", "optim.lr=1e-3", PYTHONPATH=str(ROOT))
    assert updated.returncode == 0, updated.stderr
    assert "changed          optim.lr: 0.003 -> 0.001" in updated.stdout
    assert "-        raise ValueError" in updated.stdout
    assert "resuming from" in updated.stdout
    assert "changed since the checkpoint: 2 half-done rows start again" in updated.stdout
    assert list(losses(after.path)) == list(range(1, 13))
    assert not before.path.exists()
    events = [entry["event"] for entry in journal.read(after.journal)]
    assert events.count("changed") == 3
    assert journal.read(after.journal)[-1]["cause"] == "finished"
