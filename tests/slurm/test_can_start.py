"""Jobs that could never start are refused before they are submitted, on a real SLURM."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import require

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

PARTITIONS = (
    "short Nodes=ALL MaxTime=10",
    "one Nodes=ALL MaxNodes=1",
    "pair Nodes=node[1-2]",
    "wide Nodes=ALL MinNodes=3",
    "narrow Nodes=ALL MaxCPUsPerNode=2",
    "small Nodes=ALL MaxMemPerNode=1000",
    "ours Nodes=ALL AllowAccounts=ours AllowQos=special",
    "shut Nodes=ALL State=INACTIVE",
    "down Nodes=ALL State=DOWN",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Yield a cluster of its own with more partitions: with jobs, they cannot be removed.

    Newer versions of SLURM refuse a partition for a qos that accounting does not know.
    """
    require("accounting")
    with Cluster("limits", "accounting") as running:
        running.run(["sacctmgr", "--immediate", "add", "qos", "special"])
        for partition in PARTITIONS:
            running.run(["scontrol", "create", *f"PartitionName={partition}".split()])
        yield running


def launch(
    cluster: Cluster, project: Path, name: str, *overrides: str, inside: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*inside, sys.executable, "launch.py", "--config", "config/demo.yaml"]
    command += [f"run.name={name}", "slurm.nodes=1", "slurm.time_min=60", "slurm.signal_lead_s=60"]
    command += ["data.validation=null", "data.try_rows=0", *overrides]
    return subprocess.run(
        command, cwd=project, env=cluster.env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["slurm.partition=short"],
            "slurm.time_min: 60 min is above partition short's 10 min: the job will never start;"
            " lower it (a run resumes by itself), or take another partition",
        ),
        (
            ["slurm.nodes=2", "slurm.partition=one"],
            "slurm.nodes: 2 nodes are above partition one's 1: the job will never start; lower it,"
            " or take another partition",
        ),
        (
            ["slurm.nodes=4", "slurm.ranks_per_node=1", "slurm.partition=pair"],
            "slurm.nodes: partition pair has 2 nodes, got 4; lower it",
        ),
        (
            ["slurm.nodes=2", "slurm.partition=wide"],
            "slurm.nodes: 2 nodes are below the 3 that partition wide asks for: the job will never"
            " start; raise it, or take another partition",
        ),
        (
            ["slurm.cpus_per_rank=3"],
            "slurm.cpus_per_rank: the nodes of partition low have at most 4 CPUs, got"
            " 2 ranks × 3 = 6; lower it",
        ),
        (
            ["slurm.partition=narrow", "slurm.cpus_per_rank=2"],
            "slurm.cpus_per_rank: 2 ranks × 2 = 4 CPUs of a node are above partition narrow's 2;"
            " lower it",
        ),
        (
            ["slurm.mem_gb_per_node=9"],
            "slurm.mem_gb_per_node: the nodes of partition low have at most 3.9 GB, got 9; lower"
            " it",
        ),
        (
            ["slurm.partition=small", "slurm.mem_gb_per_node=2"],
            "slurm.mem_gb_per_node: 2 GB are above partition small's 1.0 GB: the job will never"
            " start; lower it",
        ),
        (
            ["slurm.gpus_per_node=3"],
            "slurm.gpus_per_node: the nodes of partition low have at most 2 GPUs, got 3; lower it",
        ),
        (
            ["slurm.partition=shut"],
            "slurm.partition: sbatch --test-only: Required partition not available (inactive or"
            " drain); correct it",
        ),
        (
            ["slurm.partition=nowhere"],
            "slurm.partition: sbatch --test-only: invalid partition specified: nowhere: Invalid"
            " partition name specified; choose one of down, high, low, narrow,"
            " one, ours, pair, short, shut, small, wide",
        ),
        (
            ["slurm.partition=ours", "slurm.account=theirs", "slurm.qos=special"],
            "slurm.account: partition ours takes ours alone, got theirs",
        ),
        (
            ["slurm.partition=ours", "slurm.account=ours", "slurm.qos=normal"],
            "slurm.qos: partition ours takes special alone, got normal",
        ),
        (
            ["slurm.constraint=h100"],
            "slurm.constraint: sbatch --test-only: Invalid feature specification; correct it",
        ),
        (
            ["slurm.extra={reservation: none}"],
            "slurm.extra.reservation: sbatch --test-only: Requested reservation is invalid; correct"
            " it",
        ),
        (
            ["slurm.extra={nodelist: node9}"],
            "slurm.extra.nodelist: sbatch --test-only: Invalid node name specified; correct it",
        ),
        (
            ["slurm.extra={dependency: 'afterok:999999'}"],
            "slurm.extra.dependency: afterok:999999: SLURM has no job 999999: this one would wait"
            " for ever; remove it",
        ),
        (
            ["slurm.exclude=node[1-4]"],
            "slurm: sbatch --test-only: Requested node configuration is not available: the job"
            " would not start; compare it with  scontrol show partition  and  sinfo -N -l",
        ),
    ],
)
def test_a_job_that_can_never_start_is_refused(
    cluster: Cluster, project: Path, overrides: list[str], line: str
) -> None:
    done = launch(cluster, project, "never", *overrides)
    assert (done.returncode, done.stderr) == (2, f"{line}\n")
    assert not (project / "runs/never").exists()


def test_what_can_start_is_submitted(cluster: Cluster, project: Path) -> None:
    """One partition of two is enough; and one that is down may come up again."""
    done = launch(cluster, project, "some_day", "slurm.partition=down")
    assert done.returncode == 0, done.stderr
    assert "warning          slurm.partition: down is DOWN: the job waits until" in done.stdout
    done = launch(
        cluster, project, "either", "slurm.partition='short,low'", "slurm.extra={begin: now+3600}"
    )
    assert done.returncode == 0, done.stderr
    cluster.run(["scancel", "--name=some_day,either"])


def test_a_job_that_waits_for_nodes_out_of_service_is_submitted(
    cluster: Cluster, project: Path
) -> None:
    """sbatch takes it, and `sbatch --test-only` refuses it as if it could never start."""
    nodes = "nodename=node[1-3]"
    cluster.run(["scontrol", "update", nodes, "state=drain", "reason=memory [slot 3]"])
    try:
        done = launch(cluster, project, "drained", "slurm.nodes=2")
        assert (done.returncode, done.stderr) == (0, "")
        assert (
            "warning          slurm.partition: 3 of 4 nodes of partition low are out of service"
            " (3 drained): the job waits for them\n"
        ) in done.stdout
        job = re.search(r"^job +(\d+)$", done.stdout, re.MULTILINE)
        assert job and cluster.job(job[1])["JobState"] == "PENDING"
    finally:
        cluster.run(["scontrol", "update", nodes, "state=resume"])
        cluster.run(["scancel", "--name=drained"])


ASKED = ("NumNodes", "NumCPUs", "NumTasks", "CPUs/Task", "TresPerNode", "TimeLimit")
# The first is SLURM 22.05's name of the second.
ASKED += ("TRES", "ReqTRES")
ASKED += ("MinMemoryCPU", "Partition", "Requeue", "ReqNodeList", "ExcNodeList", "Dependency")


def test_a_launch_from_inside_an_allocation_asks_for_the_same(
    cluster: Cluster, project: Path
) -> None:
    """What `salloc` sets is about that job; the launcher says that it does not use it."""
    later = ["slurm.nodes=2", "slurm.partition=pair", "slurm.extra={begin: now+3600}"]
    salloc = ["salloc", "--quiet", "--nodes=1", "--ntasks=1", "--mem=100", "--time=7"]
    outside = launch(cluster, project, "outside", *later)
    inside = launch(cluster, project, "inside", *later, inside=salloc)
    assert (outside.returncode, inside.returncode) == (0, 0), outside.stderr + inside.stderr
    jobs = []
    for done in (outside, inside):
        found = re.search(r"^job +(\d+)$", done.stdout, re.MULTILINE)
        assert found
        fields = cluster.job(found[1])
        jobs.append({name: fields.get(name) for name in ASKED})
    assert jobs[0] == jobs[1]
    assert jobs[0]["NumNodes"] in ("2", "2-2")
    assert "inside job" not in outside.stderr
    assert re.match(r"note: this shell is inside job \d+, and the run becomes", inside.stderr)
    cluster.run(["scancel", "--name=outside,inside"])


def test_a_hook_that_fails_is_refused(cluster: Cluster, project: Path, tmp_path: Path) -> None:
    """Together with what SLURM says, before anything is written."""
    hook = tmp_path / "hook.py"
    hook.write_text("def process_data(record, tokenizer, max_length):\n    return record[0]\n")
    trial = [f"data.hook={hook}", "data.try_rows=16"]
    done = launch(cluster, project, "never", *trial, "slurm.constraint=h100")
    assert done.returncode == 2
    of_hook, of_slurm = done.stderr.splitlines()
    assert ":1 (byte 0): hook raised KeyError: 0 (hook.py line 2): so are 16 of" in of_hook
    assert of_slurm.startswith("slurm.constraint: sbatch --test-only: Invalid feature")
    assert not (project / "runs/never").exists()
