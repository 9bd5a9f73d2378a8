"""`launch.py` on a real SLURM: with a mistake.

What is trained is the demo's network, on CPU, two ranks on each of two nodes.
"""

import pytest
from cluster import Cluster
from conftest import Launched

from llada_sft.cluster import failures, journal
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TIMEOUT_S = 240


def causes(run: RunDir) -> list[str | None]:
    return [e.get("cause") for e in journal.read(run.journal) if e["event"] == "ended"]


def test_a_mistake_ends_the_job_without_a_requeue(cluster: Cluster, launched: Launched) -> None:
    # Held back until the mistake is made.
    run, job = launched("mistake", 20, "slurm.extra={begin: now+3600}")
    run.config.write_text(run.config.read_text().replace("epochs: 3", "epochs: x"))
    cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    fields = cluster.wait_job(job, ["FAILED"], TIMEOUT_S)
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
    assert causes(run) == ["mistake"]
    assert "--kill-on-bad-exit=1" in run.sbatch.read_text()
    lines = [failure.error for failure in failures.read_all(run) if not failure.consequence]
    assert lines
    assert all("train.epochs: must be a whole number, got 'x'" in line for line in lines)
