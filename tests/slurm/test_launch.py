"""`launch.py` on a real SLURM: with mistakes, and a training that ends early.

What is trained is the demo's network, on CPU, two ranks on each of two nodes.
"""

import re
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Launched

from llada_sft.cluster import failures, journal
from llada_sft.cluster.watch import logs, status
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import list_checkpoints
from llada_sft.training.log.metrics_csv import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TIMEOUT_S = 240


def causes(run: RunDir) -> list[str | None]:
    return [e.get("cause") for e in journal.read(run.journal) if e["event"] == "ended"]


def test_a_mistake_ends_the_job_without_a_requeue(
    cluster: Cluster, launched: Launched, capfd: pytest.CaptureFixture[str]
) -> None:
    # Held back until the mistake is made.
    run, job = launched("mistake", 20, "slurm.extra={begin: now+3600}")
    run.config.write_text(run.config.read_text().replace("epochs: 3", "epochs: x"))
    cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    fields = cluster.wait_job(job, ["FAILED"], TIMEOUT_S)
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
    assert causes(run) == ["mistake"]
    # Who follows the job learns that, though the config cannot be read.
    capfd.readouterr()
    assert logs.follow(run, logs.Wanted()) == 2
    shown = capfd.readouterr().out
    assert "\nended        mistake: " in shown
    assert f"\nnext         fix what the failure says, then  llada-sft resume {run.path}\n" in shown
    assert "--kill-on-bad-exit=1" in run.sbatch.read_text()
    lines = [failure.error for failure in failures.read_all(run) if not failure.consequence]
    assert lines
    assert all("train.epochs: must be a whole number, got 'x'" in line for line in lines)


def test_a_setup_script_that_exits_is_the_cause(
    cluster: Cluster, launched: Launched, tmp_path: Path
) -> None:
    (tmp_path / "setup.sh").write_text("echo no module named cuda/99\nexit 3\n")
    run, job = launched("setup", 20, f"slurm.setup={tmp_path}/setup.sh")
    fields = cluster.wait_job(job, ["FAILED"], TIMEOUT_S)
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
    assert causes(run) == ["mistake"]
    (error,) = status.failure_lines(run)
    assert "with exit code 3: no module named cuda/99; fix the file of slurm.setup" in error
    # No rank was started, and the log says why.
    assert f"mistake: {error}" in (run.slurm / f"{job}_0_log.out").read_text()
    assert not list(run.slurm.glob("*_srun.log"))


def test_what_srun_refuses_is_the_cause(cluster: Cluster, launched: Launched) -> None:
    # Nodes have four CPUs: two ranks of three do not fit, and the job asks for less by itself.
    run, job = launched("refused", 20, "slurm.extra={begin: now+3600}")
    script = cluster.run(["scontrol", "write", "batch_script", job, "-"])
    file = run.path / "more.sbatch"
    # SLURM 22.05 refuses them at once, newer ones never do.
    assert "--immediate=600 " in script
    script = script.replace("--immediate=600 ", "--immediate=5 ")
    file.write_text(script.replace("cpus_per_rank=1\n", "cpus_per_rank=3\n"))
    # A run has one owner.
    cluster.run(["scancel", job])
    more = cluster.run(["sbatch", "--parsable", "--begin=now", str(file)], cwd=run.path).strip()
    fields = cluster.wait_job(more, ["FAILED"], TIMEOUT_S)
    assert (fields["ExitCode"], causes(run)) == ("2:0", ["mistake"])
    (failed,) = (e for e in journal.read(run.journal) if e["event"] == "failed")
    assert re.match(
        r"no rank was started: srun: (error: Unable to create step|Job step's --cpus-per-task)",
        failed["error"],
    )


def test_an_early_stop_completes_the_job(cluster: Cluster, launched: Launched) -> None:
    """Its rate is so low that no validation is better than the first one."""
    run, job = launched(
        "early",
        40,
        "optim.lr=1e-30",
        "optim.final_lr=0",
        "train.validate_every_steps=2",
        "train.early_stop={metric: validation_loss, patience: 2}",
    )
    fields = cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S)
    assert (fields["ExitCode"], fields["Restarts"]) == ("0:0", "0")
    # Validated at 2, 4 and 6; the checkpoint of that step is there, whenever one was due.
    rows = [int(row["step"]) for row in read_metrics(run.metrics) if row.get("validation_loss")]
    assert rows == [2, 4, 6]
    assert [step for step, _ in list_checkpoints(run.checkpoints)][-1] == 6
    shown = "\n".join(status.status_lines(run))
    assert "early stop: validation_loss was not below" in shown
