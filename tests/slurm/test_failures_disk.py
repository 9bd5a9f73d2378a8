"""The disk of a run fills up: one line, the checkpoint before is intact, no requeue."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Launched

from llada_sft.cluster import failures
from llada_sft.cluster.causes import Cause
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
HOOK = Path(__file__).parent / "hooks/fill_disk.py"
TIMEOUT_S = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 40 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_ends_the_job(cluster: Cluster, launched: Launched, small_disk: Path) -> None:
    _, job = launched(
        "full", 12,
        f"run.root={small_disk}",
        f"data.hook={HOOK}",
        # It is for ranks: it changes the training of the process that loads it.
        "data.try_rows=0",
        "train.checkpoint_every_steps=4",
        "log.every_n_steps=1",
        "log.tensorboard=false",
    )  # fmt: skip
    run = RunDir(small_disk / "full")
    ended = cluster.wait_job(job, ["FAILED"], TIMEOUT_S)
    assert ended["Restarts"] == "0"
    found = {failure.cause: failure.error for failure in failures.read_all(run)}
    partial = run.checkpoints / "step_8.partial"
    assert re.fullmatch(
        rf"{re.escape(str(partial))}: cannot be written: No space left on device;"
        r" \S+ MB needed, 0\.\d MB free: the checkpoint of step 4 is intact;"
        " free space and start the run again",
        found[Cause.DISK_FULL],
    ), found
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["latest", "step_4"]
    # Emptied, not removed: the hook fills the disk once.
    (small_disk / "filler").write_bytes(b"")
    python = [sys.executable, "-m", "llada_sft"]
    output = cluster.run([*python, "resume", str(run.path)])
    again = re.search(r"^job +(\d+)$", output, re.MULTILINE)
    assert again, output
    cluster.wait_job(again[1], ["COMPLETED"], TIMEOUT_S)
    assert (run.checkpoints / "latest").read_text() == "step_12\n"
