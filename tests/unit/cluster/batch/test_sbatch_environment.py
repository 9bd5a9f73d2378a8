"""What of the submitting shell reaches sbatch, and what the queries to SLURM see."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import slurm
from llada_sft.cluster.batch import sbatch_environment
from llada_sft.cluster.batch.submit import submit
from llada_sft.cluster.launch import prepare
from llada_sft.config import load_config

FakeTool = Callable[[str, str], None]
REACHING = {
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURM_JWT": "secret.of.mine",
    "SLURM_CLUSTERS": "b",
}
ON_ACCOUNT = {
    "SBATCH_ACCOUNT": "me",
    "SBATCH_PARTITION": "gpu",
    "SBATCH_QOS": "long",
    "SBATCH_RESERVATION": "week42",
    "SBATCH_WCKEY": "ours",
}
OTHER = {"PATH": "/usr/bin:/bin", "HOME": "/home/me", "NCCL_DEBUG": "INFO", "MY_SLURM_X": "1"}
OF_ANOTHER_JOB = [
    *("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_NNODES"),
    *("SLURM_NODELIST", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NPROCS", "SLURM_PROCID"),
    *("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE", "SLURM_MEM_BIND", "SLURM_CPU_BIND"),
    *("SLURM_CPUS_PER_TASK", "SLURM_TASKS_PER_NODE", "SLURM_STEP_ID", "SLURM_STEPID"),
    *("SLURM_EXPORT_ENV", "SLURM_GTIDS", "SLURM_HINT", "SLURM_DISTRIBUTION", "SLURM_GPUS_ON_NODE"),
    *("SLURM_RESTART_COUNT", "SLURM_KILL_BAD_EXIT", "SLURM_WORKING_CLUSTER", "SLURM_HET_SIZE"),
    *("SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SBATCH_NO_REQUEUE", "SBATCH_SIGNAL", "SBATCH_OUTPUT"),
    *("SBATCH_MEM_PER_NODE", "SBATCH_GPUS", "SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_EXCLUSIVE"),
    *("SRUN_EXPORT_ENV", "SRUN_CPUS_PER_TASK", "SLURMD_NODENAME"),
]


def test_what_passes() -> None:
    config = load_config("config/demo.yaml")
    environment = {**REACHING, **ON_ACCOUNT, **OTHER, **dict.fromkeys(OF_ANOTHER_JOB, "1")}
    assert sbatch_environment.passed(environment, config) == REACHING | ON_ACCOUNT | OTHER


def test_what_the_config_says_goes_before_the_shells() -> None:
    said = ["slurm.account=x", "slurm.qos=y", "slurm.extra={reservation: z, wckey: w}"]
    config = load_config("config/demo.yaml", said)
    kept = sbatch_environment.passed(ON_ACCOUNT, config)
    assert kept == {"SBATCH_PARTITION": "gpu"}


def test_a_dry_run_says_what_passes_and_what_does_not() -> None:
    config = load_config("config/demo.yaml")
    environment = {**REACHING, "SBATCH_QOS": "long", **OTHER, "SLURM_NTASKS": "1"}
    assert sbatch_environment.lines(environment, config) == [
        "# SLURM variables of this shell that sbatch gets:",
        "#   SBATCH_QOS='long'",
        "#   SLURM_CLUSTERS='b'",
        "#   SLURM_CONF='/etc/slurm.conf'",
        "#   SLURM_JWT='***'",
        "# SLURM variables of this shell that it does not get: SLURM_NTASKS",
    ]
    assert sbatch_environment.lines(OTHER, config) == []


def test_sbatch_is_called_with_what_passes(
    project: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    for name in OF_ANOTHER_JOB:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SBATCH_ACCOUNT", "me")
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", f"env > {shlex.quote(str(project))}/seen; echo Submitted batch job 42")
    assert submit(load_config(run.config), run) == "42"
    seen = {line.partition("=")[0] for line in (project / "seen").read_text().splitlines()}
    assert not seen & set(OF_ANOTHER_JOB)
    assert {"SBATCH_ACCOUNT", "PATH", "HOME"} <= seen
    # This process keeps its own.
    assert os.environ["SLURM_NTASKS"] == "1"


def test_queries_are_those_of_a_shell_without_settings(
    tmp_path: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["SQUEUE_FORMAT", "SACCT_FORMAT", "SINFO_FORMAT", "SCONTROL_ALL", "SCANCEL_STATE"]
    for name in [*settings, "SLURM_BITSTR_LEN", "SLURM_TIME_FORMAT"]:
        monkeypatch.setenv(name, "relative")
    monkeypatch.setenv("SLURM_CLUSTERS", "b")
    fake_tool("scontrol", f"env > {shlex.quote(str(tmp_path))}/seen; echo JobState=RUNNING")
    assert slurm.job_fields("42") == {"JobState": "RUNNING"}
    seen = (tmp_path / "seen").read_text().splitlines()
    assert {"SLURM_TIME_FORMAT=%s", "SLURM_CLUSTERS=b"} <= set(seen)
    assert not [line for line in seen if line.partition("=")[0] in [*settings, "SLURM_BITSTR_LEN"]]
