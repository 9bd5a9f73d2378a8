"""The batch script of an evaluation: its options, and values that stay values."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from llada_sft.errors import LaunchError
from llada_sft.evaluation import job
from llada_sft.evaluation.job import batch_script, require_sbatch_command, submit_evaluation
from llada_sft.evaluation.plan import EvalPlan
from llada_sft.evaluation.settings import load_eval_config

HOSTILE = "it's $(touch hacked) \"; rm x"


def plan_of(tmp_path: Path, *overrides: str) -> EvalPlan:
    config = load_eval_config(None, ["slurm.gpus_per_node=0", *overrides])
    return EvalPlan(
        tmp_path / "model", tmp_path / "eval", ("a", "b"), (tmp_path / "tasks",), config
    )


def test_a_plan_reads_back(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "tasks={a: {num_fewshot: 0}}", "num_fewshot=3", "limit=5")
    again = EvalPlan.from_json(plan.to_json())
    assert again == plan
    assert again.config.for_task("a").num_fewshot == 0
    assert again.config.for_task("b").num_fewshot == 3


def test_options_are_the_config_s(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, "slurm.nodes=2", "slurm.ranks_per_node=4", "slurm.mem_gb_per_node=9",
        "slurm.partition=long",
    )  # fmt: skip
    options = [line for line in batch_script(plan).splitlines() if line.startswith("#SBATCH")]
    assert options == [
        "#SBATCH --job-name=llada-sft-eval",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=9G",
        "#SBATCH --time=240",
        "#SBATCH --partition=long",
        "#SBATCH --signal=B:USR2@120",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
    ]
    gpus = batch_script(plan_of(tmp_path, "slurm.gpus_per_node=null", "slurm.ranks_per_node=4"))
    assert "#SBATCH --gpus-per-node=4\n" in gpus


def test_no_value_is_read_by_the_shell(tmp_path: Path) -> None:
    overrides = [f"{key}={json.dumps(HOSTILE)}" for key in ("system_prompt", "slurm.setup")]
    plan = plan_of(tmp_path / HOSTILE, *overrides)
    text = batch_script(plan)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0
    line = next(line for line in text.splitlines() if line.startswith("plan="))
    assert shlex.split(line) == [f"plan={plan.to_json()}"]
    assert f"source {shlex.quote(HOSTILE)} || exit" in text


def test_what_sbatch_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'error: no partition\nmore' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    require_sbatch_command()
    with pytest.raises(LaunchError, match=r"^sbatch refused the job: error: no partition more$"):
        submit_evaluation(plan_of(tmp_path))


def test_sbatch_gets_the_script_and_no_variables_of_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\ncat > {tmp_path}/script\nenv > {tmp_path}/env\necho '12;c'\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    plan = plan_of(tmp_path)
    log = tmp_path / "eval/slurm/12.log"
    assert submit_evaluation(plan) == f"submitted job 12; its log: {log}"
    assert (tmp_path / "script").read_text() == batch_script(plan)
    environment = (tmp_path / "env").read_text()
    assert "SLURM_CONF=" in environment
    assert "SLURM_NTASKS=" not in environment


def test_a_machine_without_slurm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.shutil, "which", lambda _: None)
    with pytest.raises(LaunchError, match=r"^sbatch not found: .*; leave --slurm away$"):
        require_sbatch_command()
