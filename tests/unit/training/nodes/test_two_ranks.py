"""Two ranks compare their nodes before they train; they are threads, and meet at a real store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.cluster.launch.ports import free_port
from llada_sft.config import load_config
from llada_sft.errors import LaunchError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.nodes import preflight as preflight_module
from llada_sft.training.nodes.facts import RankFacts
from llada_sft.training.nodes.preflight import Preflight
from tests.unit.training.ranks import on_ranks

ROOT = Path(__file__).parents[4]
VERSIONS = {"torch": "2.13.0", "llada-sft": "0.1.0"}


def compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: dict[str, str], *overrides: str
) -> tuple[list[Any], list[Any]]:
    """Give rank 1 other versions; return each rank's nodes or error, and rank 0's notes."""
    config, port = load_config(ROOT / "config/demo.yaml", overrides), free_port()
    notes: list[Any] = []
    # The store is rank 0's: it must outlive the other rank.
    alive: list[Preflight] = []

    def gather(config: Any, run: Any, placement: Placement, limit_s: float) -> RankFacts:
        facts = RankFacts(placement.rank, f"node{placement.rank}", same=VERSIONS)
        return replace(facts, same=VERSIONS | other) if placement.rank else facts

    def work(rank: int, consensus: Any) -> Any:
        placement = Placement(rank, 2, rank, 0, "127.0.0.1", port)
        preflight = Preflight(config, RunDir(tmp_path), placement, Host(note=notes.append))
        alive.append(preflight)
        preflight.compare_nodes()
        # Nothing was asked of links where nothing was compared.
        if config.train.preflight == "off":
            preflight.measure_links(torch.device("cpu"))
        return preflight.nodes

    monkeypatch.setattr(preflight_module, "gather_facts", gather)
    return on_ranks(2, work), notes


def test_nodes_that_are_alike_are_known_to_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes, notes = compare(monkeypatch, tmp_path, {})
    assert nodes == [["node0", "node1"]] * 2
    assert notes == []


def test_a_node_that_differs_ends_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (first, second), _ = compare(monkeypatch, tmp_path, {"torch": "2.12.0"})
    assert isinstance(first, LaunchError)
    assert "torch" in str(first) and "2.12.0" in str(first)
    assert isinstance(second, PeerFailedError)


def test_it_may_be_a_warning_or_nobody_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, notes = compare(monkeypatch, tmp_path, {"torch": "2.12.0"}, "train.preflight=warn")
    assert nodes == [["node0", "node1"]] * 2
    assert [note["event"] for note in notes] == ["warning"]
    assert "2.12.0" in capsys.readouterr().err
    assert compare(monkeypatch, tmp_path, {}, "train.preflight=off") == ([(), ()], [])
