"""What a rank finds out of its node: on this machine, and with stubbed GPUs."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llada_sft.config import Config, load_config
from llada_sft.demo.data import write_demo
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.nodes import facts as facts_module
from llada_sft.training.nodes.facts import (
    GPU_MEMORY,
    GPUS,
    HOST_MEMORY,
    OPEN_FILES,
    SHARED_MEMORY,
    RankFacts,
    gather_facts,
)

ROOT = Path(__file__).parents[4]
Gathered = Callable[..., RankFacts]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder


@pytest.fixture
def gathered(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gathered:
    """Gather the facts of one rank of two on node7."""
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    (tmp_path / "config.yaml").write_text("a: 1\n")

    def gather(*overrides: str, local_rank: int = 0, limit_s: float = 20.0) -> RankFacts:
        config = read(demo, *overrides)
        placement = Placement(local_rank, 2, local_rank, 0, "node7", 1234)
        return gather_facts(config, RunDir(tmp_path), placement, limit_s)

    return gather


def read(demo: Path, *overrides: str) -> Config:
    return load_config(
        ROOT / "config/demo.yaml",
        [
            f"data.train={demo / 'data/train'}",
            f"data.validation={demo / 'data/heldout'}",
            f"model.path={demo / 'tokenizer'}",
            "train.accelerator=cpu",
            *overrides,
        ],
    )


def test_the_first_rank_of_a_node_looks_at_files(gathered: Gathered, demo: Path) -> None:
    first, second = gathered(), gathered(local_rank=1)
    assert (first.node, first.rank, second.rank) == ("node7", 0, 1)
    assert first.problems == second.problems == {}
    assert second.same.items() < first.same.items()
    assert first.same.keys() - second.same.keys() == {
        "code of llada_sft",
        "config.yaml",
        "the hook",
        f"data.train {demo / 'data/train'}",
        f"data.validation {demo / 'data/heldout'}",
        f"model.path {demo / 'tokenizer'}",
    }
    assert first.same["torch"] == torch.__version__
    assert OPEN_FILES in second.same
    assert second.free.keys() == {HOST_MEMORY}
    assert first.free.keys() == {HOST_MEMORY, "the run directory", "TMPDIR", SHARED_MEMORY}
    assert GPUS not in first.same


def test_other_contents_and_other_names_are_other_facts(
    gathered: Gathered, demo: Path, tmp_path: Path
) -> None:
    before = gathered().same
    (tmp_path / "config.yaml").write_text("a: 2\n")
    (tmp_path / "shards").mkdir()
    for path in (demo / "data/train").iterdir():
        (tmp_path / "shards" / f"x{path.name}").symlink_to(path)
    after = gathered(f"data.train={tmp_path / 'shards'}").same
    assert before["config.yaml"] != after["config.yaml"]
    count, digest = before[f"data.train {demo / 'data/train'}"].split(" files ")
    other_count, other_digest = after[f"data.train {tmp_path / 'shards'}"].split(" files ")
    assert (count, digest != other_digest) == (other_count, True)


def test_what_is_not_there_is_a_problem(gathered: Gathered, tmp_path: Path) -> None:
    facts = gathered(f"data.train={tmp_path / 'none'}", f"model.path={tmp_path / 'nothing'}")
    assert facts.problems.keys() == {
        f"data.train {tmp_path / 'none'}",
        f"model.path {tmp_path / 'nothing'}",
    }
    assert "No such file" in facts.problems[f"model.path {tmp_path / 'nothing'}"]


def test_remote_data_are_not_looked_at(gathered: Gathered) -> None:
    facts = gathered("data.train=s3://bucket/train")
    assert not any("s3://" in name for name in {*facts.same, *facts.problems})


def test_a_file_system_that_hangs_does_not_hold_the_others_up(
    gathered: Gathered, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(facts_module, "list_files", lambda path: released.wait(60) and [])
    facts = gathered(limit_s=1.0)
    released.set()
    for name in (f"data.train {demo / 'data/train'}", f"data.validation {demo / 'data/heldout'}"):
        assert facts.problems.pop(name) == "no answer within 1 s"
    assert facts.problems == {}
    assert "code of llada_sft" in facts.same


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, name: str = "NVIDIA H100") -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name=name, uuid=f"GPU-{index}"),
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 10**9, 80 * 10**9))


@pytest.mark.parametrize(
    ("count", "name", "same", "gpu"),
    [
        (8, "NVIDIA H100", "8 x NVIDIA H100", "GPU-1"),
        (1, "NVIDIA H100", "1 x NVIDIA H100", "GPU-0"),
        (7, "H100 MIG 1g.10gb", "7 x H100 MIG 1g.10gb", ""),
        (0, "", "none", ""),
    ],
)
def test_gpus(
    gathered: Gathered, monkeypatch: pytest.MonkeyPatch, count: int, name: str, same: str, gpu: str
) -> None:
    with_gpus(monkeypatch, count, name)
    facts = gathered("train.accelerator=auto", local_rank=1)
    assert (facts.same[GPUS], facts.gpu) == (same, gpu)
    assert facts.free.get(GPU_MEMORY) == (70e9 if count else None)


def test_a_gpu_that_raises(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(index: int) -> tuple[int, int]:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCompile with ...")

    with_gpus(monkeypatch, 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", raises)
    facts = gathered("train.accelerator=auto")
    assert facts.problems == {GPUS: "CUDA error: uncorrectable ECC error encountered"}
    assert GPUS not in facts.same


def test_without_slurm_a_node_has_the_name_of_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert facts_module.node_name() == os.uname().nodename
