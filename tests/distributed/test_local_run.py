"""`launch.py --local`, as a user types it: a killed rank, and mistakes that only ranks can see."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/tiny_llada"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a folder to launch from, with the demo's data."""
    for name in ("launch.py", "config", "slurm", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_demo(tmp_path / "demo")
    return tmp_path


def start(project: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "launch.py", "--config", "config/demo.yaml", "--local", *overrides]
    return subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rank_processes(run: RunDir) -> dict[int, int]:
    """The processes of a run's ranks, by their command lines, with their parents.

    A child that a rank has just forked still has the rank's command line.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"llada_sft.cluster" in arguments and str(run.path).encode() in arguments:
            found[int(folder.name)] = parent
    return found


def wait_for_checkpoint(run: RunDir, launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (run.checkpoints / "latest").exists():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_rank_ends_the_run_and_it_goes_on_to_the_same_losses(project: Path) -> None:
    overrides = [
        "train.max_steps=60",
        "train.checkpoint_every_steps=15",
        "train.validate_every_steps=1000",
        # Two processes less to start, three times.
        "data.prefetch_steps=0",
        "log.every_n_steps=1",
    ]
    killed, whole = RunDir(project / "runs/killed"), RunDir(project / "runs/whole")
    launcher = start(project, "run.name=killed", *overrides)
    wait_for_checkpoint(killed, launcher)
    processes = [
        process for process, parent in rank_processes(killed).items() if parent == launcher.pid
    ]
    assert len(processes) == 2
    os.kill(processes[1], signal.SIGKILL)
    _, problem = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    assert "failed; its log" in problem
    assert rank_processes(killed) == {}
    assert len(losses(killed.path)) < 60
    assert [e["cause"] for e in journal.read(killed.journal) if e["event"] == "ended"] == ["killed"]

    again = start(project, "run.name=killed", *overrides)
    printed, problem = again.communicate()
    assert again.returncode == 0, problem
    assert "resuming from" in printed
    undisturbed = start(project, "run.name=whole", *overrides)
    _, problem = undisturbed.communicate()
    assert undisturbed.returncode == 0, problem
    assert losses(killed.path) == losses(whole.path)


def _line_that_is_not_json(project: Path) -> str:
    # Of rank 1: rank 0 has nothing to say of it.
    shard = project / "demo/data/train/shard_001.jsonl"
    shard.write_text('{"prompt": "reverse ab", "response":\n' * 9)
    return "shard_001.jsonl:"


def _hook_that_raises(project: Path) -> str:
    (project / "hook.py").write_text(
        "def process_data(record, tokenizer, max_length):\n    return record['nothing']\n"
    )
    return "hook raised KeyError: 'nothing' (process_data.py line 2)"


def _checkpoint_without_a_tensor(project: Path) -> str:
    model = project / "model"
    shutil.copytree(GOLDEN, model)
    shutil.copy(project / "demo/tokenizer/tokenizer.json", model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 510, "content": "<m>"})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = "model-00001-of-00002.safetensors"
    content["weight_map"] = {k: v for k, v in content["weight_map"].items() if v == first}
    index.write_text(json.dumps(content))
    (model / "model-00002-of-00002.safetensors").unlink()
    return "model.transformer.ff_out.weight"


@pytest.mark.parametrize(
    ("make", "overrides"),
    [
        (_line_that_is_not_json, ["slurm.ranks_per_node=2"]),
        (_hook_that_raises, ["data.hook=hook.py"]),
        (
            _checkpoint_without_a_tensor,
            ["model.path=model", "model.init=pretrained", "model.size=null"],
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    project: Path, make: Callable[[Path], str], overrides: list[str]
) -> None:
    expected = make(project)
    one_rank = ["slurm.ranks_per_node=1", "data.validation=null", "data.prefetch_steps=0"]
    launcher = start(project, "run.name=mistake", *one_rank, *overrides)
    output, problem = launcher.communicate()
    assert launcher.returncode == 2, problem
    assert expected in problem
    assert "Traceback" not in problem
    # Rank 0's output is shown, too: its line is in its log alone.
    assert expected not in output
    if make is not _checkpoint_without_a_tensor:
        logs = [log.read_text() for log in (project / "runs/mistake/logs").glob("rank_*.log")]
        assert sum(expected in log for log in logs) == 1
        assert "llada-sft check" in problem and "data.max_bad_fraction" in problem
    # The tensors that are missing are named one by one.
    several = make is _checkpoint_without_a_tensor
    assert several or len(problem.splitlines()) == 1
