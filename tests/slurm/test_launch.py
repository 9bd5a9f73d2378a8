"""`launch.py` on a real SLURM: through a stop, cancelled, and with a mistake.

What is trained is the demo's network, on CPU, two ranks on each of two nodes.
"""

import sys
import time

import pytest
from cluster import Cluster
from conftest import Launched

from llada_sft.cluster import failures, journal
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TIMEOUT_S = 240


def causes(run: RunDir) -> list[str | None]:
    return [e.get("cause") for e in journal.read(run.journal) if e["event"] == "ended"]


def wait_for_step_20(run: RunDir, job: str) -> None:
    log = run.slurm / f"{job}_0_log.out"
    deadline = time.monotonic() + TIMEOUT_S
    while not (log.exists() and "step 20/" in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.5)


def test_usr2_saves_and_requeues_once(cluster: Cluster, launched: Launched) -> None:
    run, job = launched("requeued", 60)
    wait_for_step_20(run, job)
    # All but the first come while the ranks agree and save, and say nothing new.
    for name in ("USR2", "TERM", "USR2"):
        cluster.run(["scancel", f"--signal={name}", job])
    fields = cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S, restarts=1)
    assert fields["Restarts"] == "1"
    assert causes(run) == ["told to stop", "finished"]
    assert "resuming from" in (run.slurm / f"{job}_0_log.out").read_text()
    first, second = journal.attempts(journal.read(run.journal))
    # The signal is noted before the save that it asks for.
    signal, checkpoint, ended = first[-3:]
    assert [e["event"] for e in first[-3:]] == ["signal", "checkpoint", "ended"]
    assert (signal["cause"], signal["detail"]) == ("told to stop", "all ranks")
    assert (ended["exit_code"], ended["step"]) == (0, checkpoint["step"])
    (resumed,) = (entry for entry in second if entry["event"] == "resumed")
    assert resumed["step"] == checkpoint["step"]
    assert checkpoint["num_bytes"] > 0
    owners = "signals: SIGUSR1 default, SIGUSR2 llada_sft.cluster.stop_request, SIGTERM llada_sft"
    logs = [(run.slurm / f"{job}_{rank}_log.out").read_text() for rank in range(4)]
    assert [log.count(owners) for log in logs] == [2, 0, 0, 0]


def test_scancel_saves_and_does_not_requeue(cluster: Cluster, launched: Launched) -> None:
    run, job = launched("cancelled", 400)
    wait_for_step_20(run, job)
    cluster.run([sys.executable, "-m", "llada_sft", "cancel", str(run.path)])
    fields = cluster.wait_job(job, ["CANCELLED"], TIMEOUT_S)
    assert (fields["Restarts"], causes(run)) == ("0", ["cancelled"])
    assert list(run.checkpoints.glob("step_*/checkpoint.json"))


def test_a_mistake_ends_the_job_without_a_requeue(cluster: Cluster, launched: Launched) -> None:
    # Held back until the mistake is made.
    run, job = launched("mistake", 20, "slurm.extra={begin: now+3600}")
    run.config.write_text(run.config.read_text().replace("epochs: 3", "epochs: x"))
    cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    fields = cluster.wait_job(job, ["FAILED"], TIMEOUT_S)
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
    assert causes(run) == ["mistake"]
    lines = [failure.error for failure in failures.read_all(run) if not failure.consequence]
    assert lines
    assert all("train.epochs: must be a whole number, got 'x'" in line for line in lines)
