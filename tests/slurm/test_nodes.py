"""A node with another version of a library on a real SLURM: it is named, and excluded."""

from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Launched

from llada_sft.cluster import journal
from llada_sft.cluster.journal import Entry

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
TIMEOUT_S = 400
# Python imports it before anything else: the node's own installation.
SITE = """
import importlib.metadata
import os

version = importlib.metadata.version
if os.environ.get("SLURMD_NODENAME") == "node2":
    importlib.metadata.version = lambda name: "2.9.0" if name == "torch" else version(name)
"""


def test_a_node_with_another_version_is_excluded(
    cluster: Cluster, launched: Launched, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    (tmp_path / "setup.sh").write_text(f"export PYTHONPATH=$PYTHONPATH:{tmp_path}\n")
    run, job = launched(
        "differs", 2, "--nodes", "3", "slurm.ranks_per_node=1", "log.tensorboard=false",
        f"slurm.setup={tmp_path}/setup.sh",
    )  # fmt: skip
    fields = cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S, restarts=1)
    assert fields["ExcNodeList"] == "node2"
    entries = journal.read(run.journal)

    def of(event: str) -> list[Entry]:
        return [entry for entry in entries if entry["event"] == event]

    (failed,) = of("failed")
    line = f"node2: torch 2.9.0, the other 2 nodes have {of('resumed')[0]['versions']['torch']}"
    assert (failed["cause"], failed["node"], failed["rank"]) == ("node failure", "node2", 1)
    assert failed["error"] == line
    assert [entry["cause"] for entry in of("ended")] == ["node failure", "finished"]
    assert [entry["node"] for entry in of("excluded")] == ["node2"]
    (preflight,) = of("preflight")
    assert preflight["detail"].startswith("3 nodes, 3 ranks: compared in ")
    assert preflight["speeds"]["between_least_node"] in {"node1", "node3", "node4"}
    assert line in (run.slurm / f"{job}_0_log.out").read_text()
