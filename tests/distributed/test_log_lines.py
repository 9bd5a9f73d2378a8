"""The logs of a clean run: every line is ours, and says something about this run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.cluster.rank import phases
from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
# All that a rank prints of a training without an incident.
OURS = re.compile(
    r"attempt \d+: rank \d of 2, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    r"|.*/demo/data/(train|heldout): prompt_response \(\d+ of the first \d+ rows\)"
    r"|1 node, 2 ranks: compared in \d+\.\d\d s"
    r"|kernels: attention torch, norm torch, swiglu torch, rope torch, loss torch"
    r"|signals: SIGUSR1 default, SIGUSR2 [\w.]+, SIGTERM [\w.]+"
    r"|step \d+/~?\d+  loss .* tokens/s  .* left"
    r"|step \d+: validation.*"
    r"|schedule: train\.max_steps 4 -> 6: .*"
    r"|resuming from .*/checkpoints/step_\d+"
    r"|epoch 1 (up to|after) step .* rows"
)


def train(project: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch.py", "--config", "config/demo.yaml", "--local"]
    return subprocess.run(
        [*command, "run.name=clean", "train.validation_max_rows=32", *overrides],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )


def test_no_line_is_of_a_library(tmp_path: Path) -> None:
    for name in ("launch.py", "config", "slurm", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_demo(tmp_path / "demo")
    run = RunDir(tmp_path / "runs/clean")
    done = train(tmp_path, "train.max_steps=4", "train.validate_every_steps=2")
    assert done.stderr == ""
    # A resume prints other lines; and each attempt begins with its number.
    resume = [sys.executable, "-m", "llada_sft", "resume", "clean", "--local", "train.max_steps=6"]
    subprocess.run(resume, cwd=tmp_path, capture_output=True, check=True)
    for rank in range(2):
        lines = run.rank_log(rank).read_text().splitlines()
        foreign = [line for line in lines if not OURS.fullmatch(line)]
        assert foreign == []
        assert [line[:10] for line in lines if line.startswith("attempt ")] == [
            "attempt 1:",
            "attempt 2:",
        ]
        phase = phases.read_phase(run, attempt=2, rank=rank)
        assert phase is not None
        assert (phase.phase, phase.total_steps) == ("training", 6)
