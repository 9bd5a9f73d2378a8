"""Every fault once, on a cluster with accounting: each attempt ends as it should, no step is lost.

chaos.py does the same with faults chosen at random.
"""

from pathlib import Path
from random import Random

import pytest
from chaos import CHECKPOINT_EVERY, ChaosRun
from cluster import Cluster
from faults import GRACEFUL, KILLS, make_plan
from project import new_project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


def test_every_fault_once(accounting_cluster: Cluster, tmp_path: Path) -> None:
    plan = make_plan([*GRACEFUL, *KILLS], CHECKPOINT_EVERY, Random(0))
    outcome = ChaosRun(accounting_cluster, new_project(tmp_path), plan).execute()
    print(outcome.table())
    assert outcome.problems == []
