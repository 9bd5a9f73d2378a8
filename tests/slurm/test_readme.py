"""README's commands from the first job to the last, as they stand there, on a real SLURM."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Shell, job_id
from processes import wait_until
from project import add_own_config

from llada_sft.cluster import history, journal
from llada_sft.cluster.causes import Cause
from llada_sft.run_dir import RunDir
from tests.doc_commands import commands_of
from tests.served_page import read_served_page

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TIMEOUT_S = 240
PLAN, DRY_RUN, LAUNCH = commands_of("README.md", "Your cluster in five minutes")
ALL, ONE, LOGS, REPORT, CANCEL = commands_of("README.md", "Watch")
AGAIN, LONGER, UPDATE = commands_of("README.md", "Resume")


@pytest.fixture
def folder(cluster: Cluster, project: Path, tmp_path: Path) -> Iterator[Path]:
    """A checkout with config/mine.yaml, on a cluster that has a partition `gpu`."""
    add_own_config(tmp_path, project, max_steps=3)
    config = tmp_path / "config/mine.yaml"
    config.write_text(config.read_text().replace("name: demo", "name: mine"))
    cluster.run(["scontrol", "create", "PartitionName=gpu", "Nodes=ALL", "PriorityTier=1"])
    yield tmp_path
    cluster.run(["scancel", "--partition=gpu"])
    assert wait_until(lambda: not cluster.run(["squeue", "--noheader", "--partition=gpu"]), 60)
    cluster.run(["scontrol", "delete", "PartitionName=gpu"])


def test_from_the_plan_to_an_update(cluster: Cluster, folder: Path, shell: Shell) -> None:
    run = RunDir(folder / "runs/mine")

    def cancel(job: str) -> None:
        assert job in shell(CANCEL)
        cluster.wait_job(job, ["CANCELLED"], TIMEOUT_S)

    assert "memory" in shell(PLAN)
    assert "#SBATCH --nodes=4" in shell(DRY_RUN)
    assert not run.path.exists()
    first = job_id(shell(LAUNCH))
    fields = cluster.job(first)
    # A job that waits has a range.
    assert (fields["Partition"], fields["NumNodes"][0]) == ("gpu", "4")
    assert "mine" in shell(ALL)
    assert f"job          {first} " in shell(ONE)
    assert "<!DOCTYPE html>" in read_served_page(REPORT, folder, cluster.env)
    cancel(first)

    second = job_id(shell(AGAIN))
    assert "\nstep 3/3 " in shell(LOGS)
    assert cluster.wait_job(second, ["COMPLETED"], TIMEOUT_S)["Partition"] == "low"
    last = history.read(run.journal).last
    assert last is not None
    assert (last.cause, last.last_step, last.world_size) == (Cause.FINISHED, 3, 4)

    third = job_id(shell(LONGER))
    cancel(third)
    changes = [e["keys"] for e in journal.read(run.journal) if e["event"] == "changed"]
    assert [3, 2000] in [keys.get("train.max_steps") for keys in changes]
    cancel(job_id(shell(UPDATE)))
