"""Runs of older versions, resumed by the present one: through the door, and with its code."""

import os
import re
import shutil
import signal
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
# Stops its run, as Ctrl-C does, once a checkpoint is newer than those that its process began with.
STOPPING = """
import os
import signal
from pathlib import Path

from llada_sft.data.records import encode_record

checkpoints = Path(__file__).parents[1] / "checkpoints"
latest = checkpoints / "latest"
before = latest.read_text() if latest.exists() else None
sent = False


def process_data(record, tokenizer, max_length):
    global sent
    if not sent and latest.exists() and latest.read_text() != before:
        sent = True
        os.kill(os.getppid(), signal.SIGTERM)
    return encode_record(record, tokenizer)
"""
# What launch.py was for these versions: the launcher had no room yet.
OLDER_LAUNCH = """
import argparse, sys
from llada_sft.cluster.launcher import LaunchOptions, launch
from llada_sft.entry import exit_code

parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--local", action="store_true")
parser.add_argument("overrides", nargs="*")
sys.exit(exit_code(lambda: launch(LaunchOptions(**vars(parser.parse_intermixed_args())))))
"""
LAUNCH = ["launch.py", "--config", "config/demo.yaml", "--local"]
OVERRIDES = [
    # Older versions do not know the names in the present config.
    "model.activation_checkpointing=false",
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


def checkout(folder: Path, package: str) -> Path:
    """Make a checkout of an older version, and a project in it."""
    with tarfile.open(ROOT / "tests/golden" / package) as files:
        files.extractall(folder, filter="data")
    (folder / "launch.py").write_text(OLDER_LAUNCH)
    for name in ("config", "slurm", "utils"):
        (folder / name).symlink_to(ROOT / name)
    write_demo(folder / "demo")
    return folder


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The version before the door: its batch scripts call parts that have moved since."""
    return checkout(tmp_path, "older_package.tar.gz")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """The version before the rooms: it has the door, and behind it everything has moved since."""
    return checkout(tmp_path, "flat_package.tar.gz")


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
    (older / "hook.py").write_text(HOOK)
    first = call(older, *LAUNCH, "run.name=old", *OVERRIDES)
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


def test_a_run_of_the_version_before_the_rooms_is_resumed(flat: Path) -> None:
    """By its own code, through the door; then by the present code, from a checkpoint of its own."""
    (flat / "hook.py").write_text(STOPPING)
    (flat / "fixed.py").write_text(FIXED)
    stopped, whole = RunDir(flat / "runs/stopped"), RunDir(flat / "runs/whole")
    # The last value of a key counts.
    overrides = [*OVERRIDES, "train.max_steps=16"]
    undisturbed = call(flat, *LAUNCH, "run.name=whole", *overrides, "data.hook=fixed.py")
    assert undisturbed.returncode == 0, undisturbed.stderr
    first = call(flat, *LAUNCH, "run.name=stopped", *overrides)
    assert first.returncode == 128 + signal.SIGTERM, first.stderr
    code = {path: path.read_bytes() for path in stopped.code.rglob("*.py")}
    # The launcher from here on is the present one.
    shutil.rmtree(flat / "llada_sft")
    resume = ["-m", "llada_sft", "resume", str(stopped.path), "--local"]
    second = call(flat, *resume, PYTHONPATH=str(ROOT))
    assert second.returncode == 128 + signal.SIGTERM, second.stderr
    assert "resuming from" in second.stdout
    assert {path: path.read_bytes() for path in stopped.code.rglob("*.py")} == code
    (flat / "hook.py").write_text(FIXED)
    third = call(flat, *resume, "--update-code", PYTHONPATH=str(ROOT))
    assert third.returncode == 0, third.stderr
    assert "resuming from" in third.stdout
    assert (stopped.code / "llada_sft/cluster/rank/main.py").exists()
    assert list(losses(whole.path)) == list(range(1, 17))
    # The present network rounds elsewhere: the last bits of what it trains differ.
    expected = {
        step: pytest.approx(float(loss), rel=1e-5) for step, loss in losses(whole.path).items()
    }
    assert {step: float(loss) for step, loss in losses(stopped.path).items()} == expected
    ended = [e for e in journal.read(stopped.journal) if e["event"] == "ended"]
    assert [e["cause"] for e in ended] == ["cancelled", "cancelled", "finished"]
