"""The test cluster behaves like the SLURM that the other tests here take it for."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
from cluster import NODES, Cluster, ClusterError
from network import add_host_names

pytestmark = pytest.mark.slurm

CLUSTER_PY = Path(__file__).with_name("cluster.py")
PRINT_RANK = (
    "echo $SLURM_PROCID $SLURM_NODEID $SLURM_LOCALID $SLURMD_NODENAME"
    " gpus=${CUDA_VISIBLE_DEVICES-none}"
)
SRUN_RANKS = "srun --ntasks-per-node=2 --cpus-per-task=1"


@pytest.fixture
def shell_cluster(slurm_installed: None) -> Iterator[Cluster]:
    """Yield the cluster that the command line starts; it is down before and after the test."""
    if Cluster("shell").is_running():
        pytest.skip("the cluster of the command line runs: stop it to run this test")
    cluster = Cluster("shell")
    yield cluster
    cluster.stop()


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> str:
    """Submit a script whose output goes to `folder`/out and return the job's id."""
    file = folder / "job.sh"
    file.write_text(f"#!/bin/bash\n{script}\n")
    args = ["sbatch", "--parsable", f"--output={folder}/out", "--open-mode=append"]
    return cluster.run([*args, *options, str(file)], cwd=folder).strip()


def run_job(cluster: Cluster, folder: Path, script: str, *options: str) -> list[str]:
    """Run a script to its successful end and return the lines it printed, sorted."""
    cluster.wait_job(submit(cluster, folder, script, *options), ["COMPLETED"], timeout_s=60)
    return sorted((folder / "out").read_text().splitlines())


def allocated(job: dict[str, str]) -> str:
    """Return the resources of a job; SLURM 22.05 calls them TRES, later versions AllocTRES."""
    return job.get("AllocTRES") or job["TRES"]


def wait_output(folder: Path, text: str) -> None:
    """Wait until a job has printed the text; its file comes a little after it runs."""
    out = folder / "out"
    assert processes.wait_until(lambda: out.exists() and text in out.read_text(), timeout_s=30)


def test_four_idle_nodes_with_two_gpus(cluster: Cluster) -> None:
    expected = {f"{node} idle 4 4000 gpu:2 {part}" for node in NODES for part in ("low*", "high")}

    def is_idle() -> bool:  # Not at once where the test before left a job that is completing.
        lines = cluster.run(["sinfo", "--noheader", "--Node", "--format=%N %T %c %m %G %P"])
        return {line.strip() for line in lines.splitlines()} == expected

    assert processes.wait_until(is_idle, timeout_s=60), cluster.run(["sinfo", "--long", "--Node"])


def test_ranks_of_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
    lines = run_job(cluster, tmp_path, f"srun bash -c '{PRINT_RANK}'", *options)
    ranks, nodes, gpus = zip(*(line.rsplit(maxsplit=2) for line in lines), strict=True)
    assert ranks == ("0 0 0", "1 0 1", "2 1 0", "3 1 1")
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    assert set(gpus) == {"gpus=0,1"}


def test_memory_is_allocated(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="node configuration is not available"):
        submit(cluster, tmp_path, "true", "--mem=4001")
    job_id = submit(cluster, tmp_path, "true", "--mem=3000")
    job = cluster.wait_job(job_id, ["COMPLETED"], timeout_s=60)
    assert "mem=3000M" in allocated(job)


def test_exclusive_job_owns_the_node(cluster: Cluster, tmp_path: Path) -> None:
    job_id = submit(cluster, tmp_path, "echo $SLURM_GPUS_ON_NODE", "--exclusive", "--mem=0")
    job = cluster.wait_job(job_id, ["COMPLETED"], timeout_s=60)
    assert allocated(job).startswith("cpu=4,mem=4000M,node=1")
    assert (tmp_path / "out").read_text() == "2\n"


@pytest.mark.parametrize(
    ("header", "srun", "gpus"),
    [
        ("", "", "none"),  # The job has the GPUs, its steps get none unless asked for.
        ("", "--gpus-per-node=$SLURM_GPUS_ON_NODE", "0,1"),
        ("#SBATCH --gpus-per-node=2", "", "0,1"),
    ],
)
def test_step_in_an_exclusive_job(
    cluster: Cluster, tmp_path: Path, header: str, srun: str, gpus: str
) -> None:
    step = f"{SRUN_RANKS} {srun} bash -c '{PRINT_RANK}'"
    script = f"#SBATCH --exclusive\n#SBATCH --mem=0\n{header}\n{step}"
    lines = run_job(cluster, tmp_path, script, "--nodes=2")
    assert [line.split()[:3] for line in lines] == [
        ["0", "0", "0"],
        ["1", "0", "1"],
        ["2", "1", "0"],
        ["3", "1", "1"],
    ]
    assert {line.split()[-1] for line in lines} == {f"gpus={gpus}"}


def test_requeued_job_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    script = 'echo "run $SLURM_RESTART_COUNT"; exec sleep 300'
    job_id = submit(cluster, tmp_path, script, "--requeue")
    cluster.wait_job(job_id, ["RUNNING"], timeout_s=60)
    wait_output(tmp_path, "run \n")
    cluster.run(["scontrol", "requeue", job_id])
    cluster.wait_job(job_id, ["RUNNING"], timeout_s=60, restarts=1)
    wait_output(tmp_path, "run 1\n")
    cluster.run(["scancel", job_id])
    with pytest.raises(ClusterError, match="CANCELLED"):
        cluster.wait_job(job_id, ["COMPLETED"], timeout_s=60)


def test_high_partition_preempts_low(cluster: Cluster, tmp_path: Path) -> None:
    # preempt_send_user_signal: the signal of --signal comes with the preemption. A job that
    # requeues itself then runs again; one that waits is requeued when the grace time ends, up to
    # 30 s late.
    script = """
        trap 'echo USR2; scontrol requeue $SLURM_JOB_ID' USR2
        echo "run $SLURM_RESTART_COUNT"
        for _ in {1..3000}; do sleep .1; done
    """
    options = ("--nodes=4", "--exclusive", "--requeue", "--signal=B:USR2@20")
    low = submit(cluster, tmp_path, script, *options)
    cluster.wait_job(low, ["RUNNING"], timeout_s=60)
    wait_output(tmp_path, "run \n")
    (tmp_path / "high").mkdir()
    high = submit(
        cluster, tmp_path / "high", "true", "--partition=high", "--nodes=4", "--exclusive"
    )
    cluster.wait_job(high, ["COMPLETED"], timeout_s=120)
    cluster.wait_job(low, ["RUNNING"], timeout_s=120, restarts=1)
    wait_output(tmp_path, "run 1\n")
    cluster.run(["scancel", low])
    lines = (tmp_path / "out").read_text().splitlines()
    assert [line for line in lines if line.startswith(("run", "USR2"))] == ["run ", "USR2", "run 1"]


def test_start_clears_what_a_crash_left(shell_cluster: Cluster, tmp_path: Path) -> None:
    def call(action: str) -> str:
        args = [sys.executable, str(CLUSTER_PY), action]
        return subprocess.run(args, check=True, capture_output=True, text=True).stdout

    assert call("start") == f"export SLURM_CONF={shell_cluster.env['SLURM_CONF']}\n"
    before = processes.find_processes(shell_cluster.state_dir)
    job_id = submit(shell_cluster, tmp_path, "srun sleep 300", "--nodes=2")
    shell_cluster.wait_job(job_id, ["RUNNING"], timeout_s=60)
    assert "mix node[1-2]" in call("status")
    for pid in before[:2]:
        os.kill(pid, signal.SIGKILL)
    call("start")
    after = processes.find_processes(shell_cluster.state_dir)
    assert not set(before) & set(after)
    call("stop")
    assert processes.find_processes(shell_cluster.state_dir) == []
    assert call("status") == "not running\n"


def test_one_process_runs_a_cluster(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="another process runs this cluster"):
        Cluster().start()
    assert cluster.is_running()


def test_host_names_are_added_once(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost node1 # node2")
    for _ in range(2):
        add_host_names(["node1", "node2"], hosts)
    assert hosts.read_text() == (
        "127.0.0.1 localhost node1 # node2\n127.0.0.1 node2 # SLURM test cluster\n"
    )


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cluster.SEARCH_PATH", str(tmp_path))
    problem = Cluster.missing()
    assert problem
    assert problem.startswith("SLURM is not installed (no munged, mungekey, slurmctld, ")
    assert "apt-get install --no-install-recommends slurm-wlm" in problem
