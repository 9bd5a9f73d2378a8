"""The one door of batch scripts, and runs whose copy of the code is of another version."""

import os
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import llada_sft.cluster
from llada_sft.cluster import door, failures, journal
from llada_sft.cluster.__main__ import USAGE
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.launch.launcher import launch, resume
from llada_sft.cluster.launch.request import LaunchOptions
from llada_sft.cluster.owner import claim
from llada_sft.config import load_config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
# llada_sft as it was before it had a door, at 50266b4; only its Python files.
# flat_package.tar.gz is llada_sft as it was before cluster/ and data/ had rooms, at 447c897.
OLDER_PACKAGE = Path(__file__).parents[2] / "golden/older_package.tar.gz"
JOB = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
}
RANK = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "1234",
}


@pytest.fixture
def run(project: Path) -> RunDir:
    found, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    return found


@pytest.fixture
def older(run: RunDir) -> RunDir:
    """Make it a run that the version before the door launched."""
    (run.code / "llada_sft").rename(run.path / "present")
    with tarfile.open(OLDER_PACKAGE) as package:
        package.extractall(run.code, filter="data")
    (run.code / "commit.txt").write_text("50266b43a77b8ed3a809c775e1d40aa713de2592\n")
    run.versions.write_text('{"llada-sft": "0.1.0"}')
    # One that never started is built again from the present files.
    journal.append(run.journal, {"event": "started", "attempt": 1})
    return run


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llada_sft.cluster", *arguments]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def test_as_the_batch_script_calls_it(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", f'echo "$@" >> {shlex.quote(str(run.path))}/calls; echo JobState=RUNNING')
    fake_tool("sinfo", "true")
    assert call("begin", str(run.path), **JOB).returncode == 0
    assert journal.read(run.journal)[-1]["world_size"] == 4
    failures.write(run, Failure(3, "node2", Cause.EXCEPTION, "ValueError: a", 12, time=1.0))
    assert call("end", str(run.path), "1", **JOB).returncode == 1
    assert [e["event"] for e in journal.read(run.journal)] == ["started", "failed", "ended"]
    assert "requeue 42" in (run.path / "calls").read_text().splitlines()


def test_what_slurm_does_while_setup_runs_is_known_to_the_next_attempt(
    run: RunDir, fake_tool: FakeTool
) -> None:
    """SLURM sends TERM, and kills the batch script before any rank or srun was there."""
    fake_tool("scontrol", "echo JobState=RUNNING PreemptTime=1795464891 Restarts=0")
    fake_tool("sinfo", "true")
    run.setup.write_text(
        f"kill -TERM $PPID\nuntil grep -q signal {shlex.quote(str(run.journal))}\n"
        "do sleep 0.05; done\nkill -KILL $PPID\n"
    )
    assert call("begin", str(run.path), **JOB).returncode == -signal.SIGKILL
    run.setup.write_text("true\n")
    assert call("begin", str(run.path), **JOB, SLURM_RESTART_COUNT="1").returncode == 0
    noted, ended, started = journal.read(run.journal)[-3:]
    assert (noted["event"], noted["signals"], noted["cause"]) == (
        "signal",
        ["SIGTERM"],
        "preempted",
    )
    assert (ended["attempt"], ended["cause"]) == (noted["attempt"], "preempted")
    assert started["attempt"] == ended["attempt"] + 1


def test_a_rank_ends_with_our_exit_code_and_one_line(run: RunDir) -> None:
    """A number of ranks that does not fit the config."""
    done = call("rank", str(run.path), **RANK, SLURM_JOB_ID="42")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [failures.read_all(run)[0].error]
    assert "4 were started" in done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "is being launched by process"),
        (RANK, "is being launched by process"),
        ({"SLURM_JOB_ID": "42"}, "is not job 42's: it belongs to process"),
    ],
)
def test_a_rank_by_hand_writes_nothing_into_a_run_that_has_an_owner(
    run: RunDir, variables: dict[str, str], said: str
) -> None:
    with claim.hold(run, "launching"):
        before = {path for path in run.path.rglob("*") if path.is_file()}
        done = call("rank", str(run.path), **variables)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr
        assert {path for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments", [(), ("rank",), ("begin",), ("end", "a"), ("end", "a", "x"), ("port", "a"), ("x",)]
)
def test_another_call_is_told_the_usage(arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{USAGE}\n")
    assert USAGE == (
        "usage: python -m llada_sft.cluster rank RUN_DIR | begin RUN_DIR | end RUN_DIR EXIT_CODE"
        " | step RUN_DIR | port"
    )


def test_looking_through_the_door_is_light() -> None:
    """It is opened before and after every attempt, and by whoever imports the package."""
    script = """
import sys
import llada_sft.cluster
from llada_sft.cluster import __main__, door
heavy = {"torch", "numpy", "lightning", "pydantic", "submitit", "llada_sft.cluster.rank.main"}
print(sorted(heavy & sys.modules.keys()))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_launcher_reads_the_number_in_the_text_of_a_copy(run: RunDir) -> None:
    assert door.door_of(run) == llada_sft.cluster.DOOR
    door.require(run)


def test_a_run_of_the_version_before_the_rooms_has_the_same_door(run: RunDir) -> None:
    """A run of then is resumed by its own code: see tests/distributed/test_update_code.py."""
    (run.code / "llada_sft").rename(run.path / "present")
    with tarfile.open(OLDER_PACKAGE.with_name("flat_package.tar.gz")) as package:
        package.extractall(run.code, filter="data")
    assert (run.code / "llada_sft/cluster/ports.py").exists()
    door.require(run)


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("again", ["launch", "prepare", "resume", "local"])
def test_a_run_of_the_version_before_is_refused_in_one_line(older: RunDir, again: str) -> None:
    before = {path: path.read_bytes() for path in older.path.rglob("*") if path.is_file()}
    with pytest.raises(LaunchError) as caught:
        if again == "resume":
            resume(older, (), local=True, follow=False)
        elif again == "local":
            launch(LaunchOptions("a.yaml", local=True, nodes=1))
        else:
            launch(LaunchOptions("a.yaml", prepare=again == "prepare", local=again == "launch"))
    assert str(caught.value) == (
        f"{older.path}: was launched by an older llada_sft (version 0.1.0, commit 50266b43a77b),"
        " which this one cannot start; to resume it with the present code: "
        f" llada-sft resume {older.path} --update-code"
    )
    # Nothing has changed that could keep it from being resumed by its own version.
    assert before == {path: path.read_bytes() for path in older.path.rglob("*") if path.is_file()}


def test_a_run_of_a_later_version_is_refused_as_well(run: RunDir) -> None:
    file = run.code / "llada_sft/cluster/__init__.py"
    number = llada_sft.cluster.DOOR
    file.write_text(file.read_text().replace(f"DOOR = {number}\n", f"DOOR = {number + 1}\n"))
    with pytest.raises(LaunchError, match=r"was launched by a newer llada_sft \(version "):
        door.require(run)


def test_a_run_without_its_code(run: RunDir) -> None:
    (run.code / "llada_sft").rename(run.path / "elsewhere")
    with pytest.raises(LaunchError, match="has no copy of llada_sft in code/; to resume it with"):
        door.require(run)


def test_nothing_is_known_of_who_launched_it(older: RunDir) -> None:
    older.versions.write_text("[]")
    (older.code / "commit.txt").unlink()
    with pytest.raises(LaunchError, match=r"by an older llada_sft \(version unknown\), which"):
        door.require(older)


def test_a_launcher_that_is_older_than_the_door_is_told_so(run: RunDir) -> None:
    """The batch script that it writes calls `begin` before anything else that may end it."""
    command = [sys.executable, "-m", "llada_sft.cluster.attempt.supervisor", "begin", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{door.OLDER_LAUNCHER}\n")
    assert not run.journal.exists()
