"""Runs inside an allocation: `launch.py --here`, and ranks that srun or torchrun starts by hand."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from processes import wait_until
from project import add_own_config

from llada_sft.cluster import failures, history
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.history import Attempt
from llada_sft.cluster.watch.status import status_lines
from llada_sft.run_dir import RunDir
from tests.doc_commands import call_shell, commands_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TIMEOUT_S = 240
LAUNCH = [sys.executable, "launch.py", "--config", "config/demo.yaml"]
# One rank on each node: few processes for this machine.
SMALL = ["data.prefetch_steps=0", "slurm.ranks_per_node=1", "train.max_steps=4"]
SMALL += ["log.every_n_steps=1"]
RANK = [sys.executable, "-m", "llada_sft.cluster", "rank"]


@pytest.fixture(scope="module")
def allocation(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Yield the environment of a shell in an allocation of two nodes."""
    command = ["salloc", "--nodes=2", "--no-shell", "--job-name=mine"]
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=True)
    found = re.search(r"Granted job allocation (\d+)", done.stderr)
    assert found, done.stderr
    job = cluster.job(found[1])
    variables = {
        "SLURM_JOB_ID": found[1],
        "SLURM_JOB_NODELIST": job["NodeList"],
        "SLURM_JOB_NUM_NODES": job["NumNodes"],
        "SLURM_JOB_CPUS_PER_NODE": "1(x2)",
    }
    yield {**cluster.env, **variables, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(["scancel", found[1]], env=cluster.env, check=False)


def call(
    command: list[str], project: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def last_attempt(run: RunDir) -> Attempt:
    attempt = history.read(run.journal).last
    assert attempt is not None
    return attempt


def is_free(run: RunDir) -> bool:
    return any(line.split() == ["owner", "nobody"] for line in status_lines(run))


def test_here_trains_on_the_nodes_of_the_allocation(
    project: Path, allocation: dict[str, str]
) -> None:
    (project / "here.sh").write_text("export OF_SETUP=1\numask 027\n")
    changes = [*SMALL, "run.name=here", "slurm.setup=here.sh"]
    done = call([*LAUNCH, "--here", *changes], project, allocation)
    assert done.returncode == 0, done.stderr
    # Rank 0 is shown.
    assert "\nepoch 1 up to step 4: 256 rows\n" in done.stdout
    run = RunDir(project / "runs/here")
    attempt = last_attempt(run)
    nodes = allocation["SLURM_JOB_NODELIST"]
    assert (attempt.job_id, attempt.nodes, attempt.world_size) == (None, nodes, 2)
    assert attempt.cause == Cause.FINISHED
    assert run.rank_log(1).exists()
    assert is_free(run)
    # As the umask of setup.sh says.
    assert run.metrics.stat().st_mode & 0o777 == 0o640


def test_ctrl_c_saves_and_ends_the_run_and_not_the_allocation(
    cluster: Cluster, project: Path, allocation: dict[str, str]
) -> None:
    run = RunDir(project / "runs/interrupted")
    command = [*LAUNCH, "--here", *SMALL, "train.max_steps=4000", "run.name=interrupted"]
    with subprocess.Popen(
        command, cwd=project, env=allocation, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as launcher:
        assert wait_until(run.metrics.exists, TIMEOUT_S)
        launcher.send_signal(signal.SIGINT)
        _, errors = launcher.communicate(timeout=TIMEOUT_S)
    assert launcher.returncode == 128 + signal.SIGINT, errors
    hint = f"stopped; to resume:  llada-sft resume {run.path} --here"
    assert errors.decode().splitlines()[-1] == hint
    assert last_attempt(run).cause == Cause.TOLD_TO_STOP
    assert list(run.checkpoints.glob("step_*/checkpoint.json"))
    assert is_free(run)
    assert cluster.job(allocation["SLURM_JOB_ID"])["JobState"] == "RUNNING"


def test_the_ranks_end_with_their_launcher(project: Path, allocation: dict[str, str]) -> None:
    run = RunDir(project / "runs/killed")
    command = [*LAUNCH, "--here", *SMALL, "train.max_steps=4000", "run.name=killed"]
    with subprocess.Popen(
        command, cwd=project, env=allocation, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as launcher:
        assert wait_until(run.metrics.exists, TIMEOUT_S)
        launcher.kill()
    assert wait_until(lambda: not processes_of(run), TIMEOUT_S)


def processes_of(run: RunDir) -> list[int]:
    """Return the ranks of a run, by the last word of their commands."""
    word = f"\0{run.path}\0".encode()
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if command_of(process).endswith(word)
    ]


def command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_mistake_here_is_one_line(project: Path, allocation: dict[str, str]) -> None:
    (project / "exit.sh").write_text("exit 3\n")
    changes = [*SMALL, "run.name=exits", "slurm.setup=exit.sh"]
    done = call([*LAUNCH, "--here", *changes], project, allocation)
    assert done.returncode == 2
    assert "with exit code 3" in done.stderr
    assert last_attempt(RunDir(project / "runs/exits")).cause == Cause.MISTAKE


def test_a_config_that_does_not_fit_the_allocation(
    project: Path, allocation: dict[str, str]
) -> None:
    job = allocation["SLURM_JOB_ID"]
    changes = ["run.name=large", "slurm.ranks_per_node=3", "slurm.cpus_per_rank=2"]
    done = call([*LAUNCH, "--here", "--nodes", "3", *changes], project, allocation)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [
            f"slurm.nodes: 3 nodes are needed, and allocation {job} has 2: leave --nodes away, or"
            " get more nodes",
            "slurm.cpus_per_rank: 3 ranks × 2 CPUs = 6 CPUs are needed on each node, and"
            f" allocation {job} has 1: get it with  salloc --ntasks-per-node=3 --cpus-per-task=2 ,"
            " or set slurm.cpus_per_rank",
        ],
    )
    assert not (project / "runs/large").exists()


def prepare(project: Path, environment: dict[str, str], *changes: str) -> RunDir:
    done = call([*LAUNCH, "--prepare", *SMALL, *changes], project, environment)
    assert done.returncode == 0, done.stderr
    return RunDir(Path(done.stdout.strip()))


def test_the_commands_of_the_page(cluster: Cluster, project: Path, tmp_path: Path) -> None:
    """docs/by-hand.md as it stands there, in a shell of salloc: --here, srun and torchrun."""
    add_own_config(tmp_path, project, max_steps=4)
    salloc, here, *by_hand = commands_of("docs/by-hand.md")
    script = "\n".join(["set -euo pipefail", here, *by_hand])
    call_shell(f"{salloc} bash -c {shlex.quote(script)}", tmp_path, cluster.env, TIMEOUT_S)
    for name, world_size in (("here", 2), ("hand", 2), ("one", 1)):
        run = RunDir(tmp_path / "runs" / name)
        attempt = last_attempt(run)
        assert (attempt.job_id, attempt.world_size) == (None, world_size)
        assert bool(attempt.nodes) == (world_size == 2)
        assert (attempt.cause, attempt.last_step) == (Cause.FINISHED, 4)
        assert is_free(run)


def test_srun_by_hand_with_another_number_of_ranks(
    project: Path, allocation: dict[str, str]
) -> None:
    run = prepare(project, allocation, "run.name=three", "slurm.nodes=3")
    srun = ["srun", f"--jobid={allocation['SLURM_JOB_ID']}", "--overlap", "--nodes=2"]
    done = call([*srun, "--ntasks=2", *RANK, str(run.path)], project, allocation)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("srun: ")]
    assert lines == [
        f"{run.config}: slurm.nodes × slurm.ranks_per_node = 3 ranks, but 2 were started: start 3,"
        " or prepare the run again with --nodes and slurm.ranks_per_node as they are here"
    ]
    assert not history.read(run.journal).attempts


@pytest.fixture
def torchrun() -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    return [*command, "-m", "llada_sft.cluster", "rank"]


def of_no_slurm() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_torchrun_with_another_number_of_ranks(
    project: Path, cluster: Cluster, torchrun: list[str]
) -> None:
    run = prepare(project, of_no_slurm(), "run.name=one")
    done = call([*torchrun, str(run.path)], project, of_no_slurm())
    assert done.returncode == 1
    mistake = f"{run.config}: slurm.nodes × slurm.ranks_per_node = 1 ranks, but 2 were started"
    assert done.stderr.count(mistake) == 1
    assert not failures.read_all(run)
