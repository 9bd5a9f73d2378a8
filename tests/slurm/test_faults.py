"""Every fault once, on a cluster with accounting: each attempt ends as it should, no step is lost.

chaos.py does the same with faults chosen at random, and two ranks on each node instead of one.
"""

from pathlib import Path
from random import Random

import pytest
from chaos import CHECKPOINT_EVERY, ChaosRun
from cluster import Cluster
from faults import GRACEFUL, KILLS, Fault, make_plan
from project import new_project

from llada_sft.cluster import journal

# test_owner.py, and tests/distributed/test_damage.py.
SHOWN_ELSEWHERE = {Fault.SECOND_STARTER, Fault.DAMAGED}
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


def test_every_fault_once(accounting_cluster: Cluster, tmp_path: Path) -> None:
    among = [fault for fault in (*GRACEFUL, *KILLS) if fault not in SHOWN_ELSEWHERE]
    plan = make_plan(among, CHECKPOINT_EVERY, Random(0), ranks_per_node=1)
    chaos = ChaosRun(accounting_cluster, new_project(tmp_path), plan, ranks_per_node=1)
    outcome = chaos.execute()
    print(outcome.table())
    assert outcome.problems == []
    assert_suspects_are_left_out(accounting_cluster, journal.read(chaos.run.journal))


def assert_suspects_are_left_out(cluster: Cluster, entries: list[journal.Entry]) -> None:
    """Of four nodes two can be spared: the first two where a rank was killed are left out."""
    excluded: list[str] = []
    for entry in entries:
        if entry["event"] == "started":
            nodes = cluster.run(["scontrol", "show", "hostnames", entry["nodes"]]).split()
            assert not set(nodes) & set(excluded)
        elif entry["event"] == "excluded":
            excluded.append(entry["node"])
    assert len(excluded) == len(set(excluded)) == 2
    refused = [e["detail"] for e in entries if e["event"] == "warning"]
    assert any("is not excluded: the job needs 2 nodes" in detail for detail in refused)
