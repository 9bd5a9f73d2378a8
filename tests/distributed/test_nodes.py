"""Nodes that differ are named before anything is built, and the job ends; see node_workers.py."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.launch.ports import free_port
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_local_run import project, rank_processes, start
from tests.distributed.test_training import SMALL

__all__ = ["project"]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
WORKERS = "tests.distributed.node_workers"
IS_ROOT = os.geteuid() == 0
needs_network = pytest.mark.skipif(
    not (IS_ROOT and shutil.which("ip") and shutil.which("tc")),
    reason="network namespaces need root, and ip and tc of iproute2",
)
AS_ROOT = ["code", "folder"]


def overrides(demo: Path) -> list[str]:
    return [
        f"data.train={demo / 'data/train'}",
        f"data.validation={demo / 'data/heldout'}",
        f"model.path={demo / 'tokenizer'}",
        "train.preflight_timeout_s=4",
    ]


def compared(demo: Path, world_size: int, faults: list[str], *more: str) -> dict[str, Any]:
    """Return what rank 0 reports of each fault, once the other ranks have followed it."""
    of_ranks = run_on_ranks(
        f"{WORKERS}:compared", world_size, 100,
        data=str(demo / "data/train"), overrides=[*overrides(demo), *more],
        ports=[free_port() for _ in (*faults, "the end")], faults=faults,
    )  # fmt: skip
    for others in of_ranks[1:]:
        for own, other in zip(of_ranks[0], others, strict=True):
            expected = "NoneType" if own["error"] == "NoneType" else "PeerFailedError"
            assert (other["error"], other["notes"]) == (expected, [])
    return dict(zip(faults, of_ranks[0], strict=True))


def test_of_three_nodes_the_one_that_differs_is_named(demo: Path) -> None:
    root = AS_ROOT if IS_ROOT else []
    faults = ["none", "versions", "gpus", "no gpus", "clock", "disk", *root, "silent"]
    found = compared(demo, 3, faults)
    assert found.pop("none")["error"] == "NoneType"
    assert {(one["error"], one["node"]) for one in found.values()} == {("NodeError", "node3")}
    text = {fault: one["text"] for fault, one in found.items()}
    assert text["versions"].startswith("node3: torch 2.9.0, the other 2 nodes have 2.")
    gpus = "the other 2 nodes have 8 x NVIDIA H100"
    assert text["gpus"] == f"node3: GPUs 7 x NVIDIA H100, {gpus}"
    assert text["no gpus"] == f"node3: GPUs none, {gpus}"
    assert text["clock"] in [f"node3: its clock is {s} s behind the others'" for s in (599, 600)]
    data = f"data.train {demo / 'data/train'}"
    assert text["disk"].splitlines()[0] == f"node3: {data}: no answer within 2 s"
    assert text["silent"] == (
        "rank 2 (node3): was asked to say what its node is like, no answer within 4 s"
        " (train.preflight_timeout_s)"
    )
    if root:
        assert text["code"].startswith("node3: code of llada_sft ")
        assert f"node3: {data}: " in text["folder"]
        assert "no .jsonl" in text["folder"]


def test_of_two_nodes_nobody_is_in_the_minority(demo: Path) -> None:
    found = compared(demo, 2, ["versions", "clock"])
    assert {one["error"] for one in found.values()} == {"LaunchError"}
    first, *_, last = found["versions"]["text"].splitlines()
    assert first.startswith("torch differs: node1: 2.")
    assert first.endswith("; node2: 2.9.0")
    assert last.startswith("make the nodes alike")
    assert "node1: its clock is 6" in found["clock"]["text"]


def test_what_differs_can_be_only_a_warning(demo: Path) -> None:
    found = compared(demo, 2, ["versions"], "train.preflight=warn")["versions"]
    assert found["error"] == "NoneType"
    (note,) = found["notes"]
    assert note["event"] == "warning"
    assert note["detail"].startswith("torch differs: ")


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Make three network namespaces on a bridge; the last one's link has 8 Mbit/s."""
    bridge = f"lb{os.getpid()}"
    names = [f"{bridge}n{number}" for number in (1, 2, 3)]

    def do(command: str) -> None:
        subprocess.run(command.split(), check=True, capture_output=True)

    try:
        do(f"ip netns add {bridge}")
        inside = f"ip -n {bridge}"
        do(f"{inside} link add br0 type bridge")
        do(f"{inside} link set br0 up")
        for number, name in enumerate(names, 1):
            do(f"ip netns add {name}")
            do(f"ip -n {name} link add eth0 type veth peer name p{number} netns {bridge}")
            do(f"{inside} link set p{number} master br0 up")
            do(f"ip -n {name} addr add 10.213.7.{number}/24 dev eth0")
            do(f"ip -n {name} link set eth0 up")
            do(f"ip -n {name} link set lo up")
        limit = "tbf rate 8mbit burst 16kb latency 400ms"
        do(f"ip netns exec {names[2]} tc qdisc add dev eth0 root {limit}")
        yield names
    finally:
        for name in (*names, bridge):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@needs_network
def test_a_node_with_a_slow_link_is_named(network: list[str], demo: Path, tmp_path: Path) -> None:
    of_ranks = run_on_ranks(
        f"{WORKERS}:linked", 3, 100,
        namespaces=network, run=str(tmp_path), port=29_511,
        overrides=[*overrides(demo)[:-1], "train.accelerator=cpu"],
    )  # fmt: skip
    assert [one["error"] for one in of_ranks] == ["NodeError", "NoneType", "NoneType"]
    assert of_ranks[0]["node"] == "node3"
    assert "GB/s to other nodes, the median is" in of_ranks[0]["text"]


def test_the_rank_that_the_others_wait_for_is_named(demo: Path, tmp_path: Path) -> None:
    notes, *_ = run_on_ranks(
        f"{WORKERS}:trained", 3, 200,
        run=str(tmp_path), slow_rank=1,
        overrides=[
            *SMALL, *overrides(demo)[:-1], "data.validation=null", "train.max_steps=24",
        ],
    )  # fmt: skip
    (checked,) = (note for note in notes if note["event"] == "preflight")
    assert checked["detail"].startswith("3 nodes, 3 ranks: compared in ")
    assert checked["speeds"]["between_gb_per_s"] > 0
    (warning,) = (note for note in notes if note["event"] == "warning")
    assert re.fullmatch(
        r"step 2\d: the other ranks wait for rank 1 \(node2\): in 20 steps in a row it needed"
        r" \d+\.\d+ times the median's time for what it does by itself .*",
        warning["detail"],
    )
    rows = read_metrics(RunDir(tmp_path).metrics)[3:]
    assert {row["slowest_rank"] for row in rows} == {"1"}
    assert all(float(row["slowest_ratio"]) > 1.25 for row in rows)


# Python imports it before anything else: each rank is on a node of its own.
SITE = """
import importlib.metadata
import os

rank = os.environ.get("RANK")
if rank:
    os.environ["SLURMD_NODENAME"] = f"node{rank}"
version = importlib.metadata.version
if rank == "1":
    importlib.metadata.version = lambda name: "2.9.0" if name == "torch" else version(name)
"""


def test_a_run_ends_with_the_line_and_exit_code_2(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(project), prepend=os.pathsep)
    launcher = start(project, "run.name=differs")
    printed, problem = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert "Traceback" not in printed + problem
    line = "torch differs: node0: 2"
    assert sum(one.startswith(line) for one in problem.splitlines()) == 1
    run = RunDir(project / "runs/differs")
    (failed, ended) = journal.read(run.journal)[-2:]
    assert (failed["event"], failed["cause"], ended["cause"]) == ("failed", "mistake", "mistake")
    assert failed["error"].startswith(line)
    assert "node1: 2.9.0" in failed["error"]
    assert rank_processes(run) == {}
