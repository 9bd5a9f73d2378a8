"""slurm/train.sbatch on this machine, with stand-ins for srun and scontrol: leaks and requeues."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster import journal
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
ROOT = Path(__file__).parents[4]
JOB = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "node1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_CLUSTER_NAME": "c",
    "SLURMD_NODENAME": "node1",
}
SRUN = """
import json, os, sys
with open({file!r}, "w") as file:
    json.dump({{"arguments": sys.argv[1:], "variables": dict(os.environ)}}, file)
"""


class ByHand:
    """A project, and the script as SLURM would start it there."""

    def __init__(self, project: Path, folder: Path, fake_tool: FakeTool) -> None:
        self.project, self.folder, self._fake_tool = project, folder, fake_tool
        self.seen = folder / "seen.json"
        self.run = RunDir(folder / "runs/a")
        (folder / "srun.py").write_text(SRUN.format(file=str(self.seen)))
        fake_tool("srun", f'exec {sys.executable} {shlex.quote(str(folder))}/srun.py "$@"')
        fake_tool("python", f'exec {sys.executable} "$@"')
        fake_tool("sinfo", "true")

    def start(
        self, *arguments: str, fields: str = "Restarts=0 GRES=", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Start the script; `fields`: what scontrol says of the job, empty if it is missing."""
        answer = f"echo 'JobId=42 JobState=RUNNING {fields} MinCPUsNode=1'"
        self._fake_tool("scontrol", answer if fields else "exit 127")
        self.seen.unlink(missing_ok=True)
        overrides = [f"run.root={self.folder}/runs", *arguments]
        of_job = {**JOB, "SLURM_SUBMIT_DIR": str(self.project)}
        return subprocess.run(
            ["/bin/bash", str(ROOT / "slurm/train.sbatch"), "a.yaml", *overrides],
            cwd="/",
            env={**os.environ, "XDG_STATE_HOME": f"{self.folder}/state", **of_job, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def srun(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.seen.read_text())
        return found


@pytest.fixture
def by_hand(project: Path, tmp_path: Path, fake_tool: FakeTool) -> ByHand:
    (project / "launch.py").symlink_to(ROOT / "launch.py")
    (project / "setup.sh").write_text("export SLURM_WANTED=1\n")
    return ByHand(project, tmp_path, fake_tool)


def test_nothing_of_another_job_reaches_srun(by_hand: ByHand) -> None:
    leaking = {
        "SLURM_NTASKS": "1",
        "SLURM_NNODES": "7",
        "SLURM_MEM_PER_CPU": "77",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_HINT": "nomultithread",
        "SLURM_DISTRIBUTION": "cyclic",
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_RESTART_COUNT": "7",
        "SRUN_CPUS_PER_TASK": "9",
    }
    done = by_hand.start(**leaking)
    assert done.returncode == 0, done.stderr
    srun = by_hand.srun()
    kept = {name for name in srun["variables"] if name.startswith(("SLURM_", "SRUN_"))}
    assert kept - {"SLURM_CONF"} == {
        *(name for name in JOB if name.startswith("SLURM_")),
        "SLURM_SUBMIT_DIR",
        "SLURM_RESTART_COUNT",
        "SLURM_NTASKS_PER_NODE",
        # Of setup.sh, which may know why.
        "SLURM_WANTED",
    }
    assert srun["variables"]["SLURM_RESTART_COUNT"] == "0"
    assert not any("gpu" in argument for argument in srun["arguments"])
    assert srun["arguments"][:4] == ["--jobid=42", "--nodes=1", "--ntasks=2", "--ntasks-per-node=2"]
    assert journal.read(by_hand.run.journal)[0]["restarts"] == 0


def test_a_step_asks_for_the_gpus_of_its_job(by_hand: ByHand) -> None:
    by_hand.start(fields="Restarts=0 GRES=gpu:2(IDX:0-1)", SLURM_GPUS_ON_NODE="2")
    assert "--gpus-per-node=2" in by_hand.srun()["arguments"]


def test_a_task_of_an_array_is_not_taken_for_another(by_hand: ByHand) -> None:
    fields = "Restarts=0 GRES=\nJobId=43 ArrayJobId=42 Restarts=7 GRES=gpu:2(IDX:0-1)"
    by_hand.start(fields=fields, SLURM_GPUS_ON_NODE="2")
    assert not any("gpu" in argument for argument in by_hand.srun()["arguments"])


def edit_config(project: Path) -> None:
    (project / "a.yaml").write_text("run: {name: b}\ntrain: {epochs: -1}\n")


def edit_hook(project: Path) -> None:
    (project / "hook.py").write_text("raise ValueError\n")
    (project / "setup.sh").write_text("exit 3\n")


def delete_launch_py(project: Path) -> None:
    (project / "launch.py").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("edit", [edit_config, edit_hook, delete_launch_py, shutil.rmtree])
def test_a_requeued_job_resumes_with_the_code_and_config_of_its_first_start(
    by_hand: ByHand, edit: Callable[[Path], None]
) -> None:
    assert by_hand.start().returncode == 0
    first = by_hand.srun()["arguments"]
    before = {path: path.read_bytes() for path in [by_hand.run.config, by_hand.run.setup]}
    edit(by_hand.project)
    done = by_hand.start(fields="Restarts=1 GRES=", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    assert by_hand.srun()["arguments"] == first
    assert before == {path: path.read_bytes() for path in before}
    started = [e for e in journal.read(by_hand.run.journal) if e["event"] == "started"]
    assert [(e["attempt"], e["restarts"]) for e in started] == [(1, 0), (2, 1)]


@pytest.mark.slow
def test_a_home_that_cannot_be_written(by_hand: ByHand) -> None:
    """As on the nodes of some clusters: the note is in the folder of submission."""
    read_only = {"XDG_STATE_HOME": "", "HOME": "/proc/nowhere"}
    assert by_hand.start(**read_only).returncode == 0
    edit_config(by_hand.project)
    done = by_hand.start(fields="Restarts=1 GRES=", SLURM_RESTART_COUNT="1", **read_only)
    assert done.returncode == 0, done.stderr
    assert by_hand.srun()["arguments"][-1] == str(by_hand.run.path)
    assert (by_hand.project / ".llada_sft/jobs/c_42").exists()


def test_options_of_the_shell_that_submits_do_not_end_the_script(by_hand: ByHand) -> None:
    done = by_hand.start(SHELLOPTS="errexit:nounset", XDG_STATE_HOME="/proc/nowhere")
    assert done.returncode == 0, done.stderr
    assert by_hand.seen.exists()


def test_a_note_holds_no_argument(by_hand: ByHand) -> None:
    by_hand.start("log.every_n_steps=4711")
    (note,) = (by_hand.folder / "state/llada_sft/jobs").iterdir()
    assert note.name == "c_42"
    assert note.read_text().splitlines()[1] == str(by_hand.run.path)
    assert "4711" not in note.read_text()


@pytest.mark.slow
def test_the_first_start_of_a_job_never_looks_at_a_note(by_hand: ByHand) -> None:
    """The number of an earlier job, and a variable of the shell that submitted this one."""
    by_hand.start()
    by_hand.start("run.name=b", SLURM_RESTART_COUNT="3")
    assert by_hand.srun()["arguments"][-1] == f"{by_hand.folder}/runs/b"


@pytest.mark.slow
def test_a_note_of_another_job_of_that_number_is_passed_over(by_hand: ByHand) -> None:
    by_hand.start()
    done = by_hand.start("run.name=b", fields="Restarts=1 GRES=", SLURM_RESTART_COUNT="1")
    assert "c_42: no note of this job's first start: using the working tree as it" in done.stderr
    assert by_hand.srun()["arguments"][-1] == f"{by_hand.folder}/runs/b"


def test_a_run_directory_that_is_gone_is_one_line(by_hand: ByHand) -> None:
    by_hand.start()
    shutil.rmtree(by_hand.run.path)
    done = by_hand.start(fields="Restarts=1 GRES=", SLURM_RESTART_COUNT="1")
    said = f"{by_hand.run.path}: the run directory of this job is gone; submit again\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not by_hand.seen.exists()


def test_without_the_environment_of_the_training(by_hand: ByHand, tmp_path: Path) -> None:
    (tmp_path / "bin/python").unlink()
    done = by_hand.start(PATH=str(tmp_path / "bin"), SHELL="/bin/bash")
    said = "python: not found: activate the environment of the training, and submit again\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_options_of_srun_and_a_container_are_those_of_the_config(by_hand: ByHand) -> None:
    project = by_hand.project
    (project / "config/cluster").mkdir(parents=True)
    (project / "config/cluster/ours.yaml").write_text(
        "slurm:\n"
        "  srun_args: {comment: \"$(touch pwned) 'a' # b\", cpu-bind: cores}\n"
        f"  container: {{kind: pyxis, image: a/b, mounts: [{project}]}}\n"
    )
    done = by_hand.start("--cluster", "ours")
    assert done.returncode == 0, done.stderr
    arguments, run = by_hand.srun()["arguments"], by_hand.run
    start = arguments.index("env")
    assert arguments[start - 5 : start] == [
        "--comment=$(touch pwned) 'a' # b",
        "--cpu-bind=cores",
        "--container-image=a/b",
        f"--container-mounts={project}:{project},{run.path}:{run.path}",
        f"--container-workdir={run.path}",
    ]
    assert arguments[start + 1] == f"PYTHONPATH={run.code}"
    assert arguments[-5:] == ["-u", "-m", "llada_sft.cluster", "rank", str(run.path)]
    assert not list(by_hand.folder.rglob("pwned"))


def test_a_run_of_an_older_version_is_not_asked_for_them(by_hand: ByHand) -> None:
    assert by_hand.start().returncode == 0
    text = by_hand.run.config.read_text()
    by_hand.run.config.write_text(
        text.replace("  srun_args: {}\n", "").replace("  container: null\n", "")
    )
    (by_hand.run.code / "llada_sft/cluster/batch/container.py").unlink()
    done = by_hand.start(fields="Restarts=1 GRES=", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr


def test_a_node_without_scontrol_trains_and_says_why_nothing_is_restarted(by_hand: ByHand) -> None:
    done = by_hand.start(fields="")
    assert done.returncode == 0, done.stderr
    assert by_hand.srun()["arguments"][-1] == str(by_hand.run.path)
    # The ranks fail: what could not be restarted is in the job's log and in the journal.
    (by_hand.folder / "srun.py").write_text("raise SystemExit(1)\n")
    done = by_hand.start(fields="", SLURM_RESTART_COUNT="1")
    assert done.returncode == 1
    assert "not restarted: scontrol" in done.stdout
    assert f"llada-sft resume {by_hand.run.path}" in done.stdout
