"""A launch with a preset, or with a container: what is written, and what is refused before that."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from llada_sft import cli
from llada_sft.cluster.launch import local
from llada_sft.config import load_config

FakeTool = Callable[[str, str], None]
Call = Callable[..., tuple[int, str]]
PRESET = "slurm:\n  partition: gpu\n  ranks_per_node: 1\n  setup: null\n  srun_args: {mpi: pmix}\n"


@pytest.fixture
def call(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    (project / "config/cluster").mkdir(parents=True)
    (project / "config/cluster/ours.yaml").write_text(PRESET)

    def run(*arguments: str) -> tuple[int, str]:
        main = launch.main if arguments[0].startswith("--") else cli.main
        monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
        code = main()
        return code, capsys.readouterr().err

    return run


def test_the_run_directory_has_the_values_and_the_name(call: Call, project: Path) -> None:
    assert call("--config", "a.yaml", "--cluster", "ours", "--prepare") == (0, "")
    (project / "config/cluster/ours.yaml").unlink()
    slurm = load_config("runs/a/config.yaml").slurm
    assert (slurm.partition, slurm.srun_args) == ("gpu", {"mpi": "pmix"})
    # The run's own file has these.
    assert (slurm.ranks_per_node, slurm.setup) == (2, f"{project}/runs/a/code/setup.sh")
    command = (project / "runs/a/command.txt").read_text()
    assert command == f"cd {project} && python launch.py --config a.yaml --cluster ours --prepare\n"


def test_check_takes_a_preset(call: Call) -> None:
    assert call("check", "a.yaml", "--cluster", "our") == (
        2,
        "--cluster: config/cluster has no 'our'; it has ours; take one of them, or a path\n",
    )


def test_without_presets_a_path_is_asked_for(call: Call, project: Path) -> None:
    (project / "config/cluster/ours.yaml").unlink()
    assert call("--config", "a.yaml", "--cluster", "ours", "--dry-run") == (
        2,
        "--cluster: config/cluster has no 'ours'; it has none; give a path\n",
    )


def test_what_the_container_would_miss_is_refused_before_anything_is_written(
    call: Call, project: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("srun", "sbatch", "scontrol", "sinfo"):
        fake_tool(tool, "exit 1")
    launch = ["--config", "a.yaml", "slurm.container={kind: pyxis, image: a, mounts: [shards]}"]
    lines = (
        f"model.path: {project}/model is not in the container; add it to slurm.container.mounts\n"
    )
    assert call(*launch) == call(*launch, "--dry-run") == (2, lines)
    assert not (project / "runs").exists()
    # Ranks on this machine are in no container.
    monkeypatch.setattr(local, "run_local", lambda run, config: 0)
    assert call(*launch, "--local") == (0, "")
