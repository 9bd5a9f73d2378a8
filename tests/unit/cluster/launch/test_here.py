"""`--here` with a stand-in for srun: what reaches it, and what its end means.

tests/slurm/test_here.py runs real ranks.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster import history
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.launch import here, prepare
from llada_sft.cluster.launch.here import run_in_allocation
from llada_sft.cluster.owner.ownership import VARIABLE
from llada_sft.config import load_config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
SHELL = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_CPUS_PER_NODE": "16(x2)",
    "SLURM_NTASKS": "9",
}
SRUN = """
import json, os, sys
if sys.argv[-1] == "port":
    print(12345)
    sys.exit()
with open({file!r}, "w") as file:
    json.dump({{"arguments": sys.argv[1:], "variables": dict(os.environ)}}, file)
"""


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch, fake_tool: FakeTool) -> RunDir:
    """Prepare a run of two ranks on each of two nodes, at a hostile path, in an allocation."""
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    fake_tool("scontrol", "printf 'node1\\nnode2\\n'")
    root = json.dumps(f"{project}/a b; touch pwned $(touch pwned)")
    config = load_config("a.yaml", ["slurm.nodes=2", f"run.root={root}"])
    return prepare.create(config, project, ["launch.py"])[0]


@pytest.fixture
def seen(project: Path, fake_tool: FakeTool) -> Callable[[], Any]:
    """Put an srun in place that notes what it was given; return a function that reads it."""
    file, script = project / "seen.json", project / "srun.py"
    script.write_text(SRUN.format(file=str(file)))
    fake_tool("srun", f'exec {sys.executable} {script} "$@"')
    return lambda: json.loads(file.read_text())


def test_what_reaches_srun(run: RunDir, project: Path, seen: Callable[[], Any]) -> None:
    assert run_in_allocation(run.path, load_config(run.config)) == 0
    arguments, variables = seen()["arguments"], seen()["variables"]
    assert arguments[:9] == [
        "--jobid=7",
        "--overlap",
        "--nodes=2",
        "--nodelist=node1,node2",
        "--export=ALL",
        "--ntasks=4",
        "--ntasks-per-node=2",
        "--cpus-per-task=8",
        "--kill-on-bad-exit=1",
    ]
    assert f"--output={run.logs}/rank_%t.log" in arguments
    assert arguments[-3:] == ["llada_sft.cluster", "rank", str(run.path)]
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("node1", "12345")
    assert variables["PYTHONPATH"].split(":")[0] == str(run.code)
    # Of setup.sh; and nothing of the allocation that would be an option of the step.
    assert variables["FROM_SETUP"] == "1"
    assert "SLURM_NTASKS" not in variables
    assert variables[VARIABLE]
    assert not list(project.rglob("pwned"))
    last = history.read(run.journal).last
    assert last is not None
    assert (last.job_id, last.nodes, last.world_size) == (None, "node[1-2]", 4)


def test_what_srun_refuses_is_a_mistake(
    run: RunDir, fake_tool: FakeTool, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal = "srun: error: Unable to create step for job 7: More processors requested"
    fake_tool("srun", f'case "$*" in *port) echo 1;; *) echo "{refusal}" >&2; exit 1;; esac')
    assert run_in_allocation(run.path, load_config(run.config)) == 2
    assert capfd.readouterr().err.splitlines() == [
        refusal,
        f"no rank was started; what srun said is in {run.slurm}",
    ]
    last = history.read(run.journal).last
    assert last is not None
    assert (last.cause, last.error) == (Cause.MISTAKE, f"no rank was started: {refusal}")


def test_a_node_that_does_not_answer(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("srun", "echo 'srun: error: no such node' >&2; exit 1")
    message = "^allocation 7: no port on its first node: srun: error: no such node$"
    with pytest.raises(LaunchError, match=message):
        run_in_allocation(run.path, load_config(run.config))
    assert not run.journal.exists()


def test_a_node_that_is_busy_with_another_step(
    run: RunDir, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tool("srun", "exec sleep 30")
    monkeypatch.setattr(here, "PORT_TIMEOUT_S", 0.2)
    with pytest.raises(LaunchError) as caught:
        run_in_allocation(run.path, load_config(run.config))
    assert str(caught.value) == (
        "srun: no process could be started in allocation 7 in 0.2 s: are its nodes busy with"
        " another step (squeue --steps)?"
    )


def test_a_run_of_an_older_version(run: RunDir) -> None:
    (run.code / "llada_sft/cluster/launch/here.py").unlink()
    with pytest.raises(LaunchError, match="was launched by an older llada_sft, whose ranks --here"):
        run_in_allocation(run.path, load_config(run.config))
