"""docs/sweeps.md on a real SLURM: jobs that wait in turn, restart, are cancelled and compared."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from processes import wait_until
from project import add_own_config

from llada_sft.cluster import history
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.watch.sweep_table import sweep_rows
from llada_sft.run_dir import RunDir
from tests.doc_commands import call_shell, commands_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TIMEOUT_S = 240
LAUNCH, STATUS, RESUME, CANCEL = commands_of("docs/sweeps.md")
NAMES = ["lr=1e-05", "lr=2e-05"]
Shell = Callable[[str], str]


@pytest.fixture
def shell(cluster: Cluster, project: Path, tmp_path: Path) -> Iterator[Shell]:
    add_own_config(tmp_path, project, max_steps=30)
    yield lambda command: call_shell(command, tmp_path, cluster.env, TIMEOUT_S)
    jobs = [history.read(run / "journal.jsonl").job_id for run in tmp_path.glob("runs/first/lr=*")]
    subprocess.run(["scancel", *filter(None, jobs)], env=cluster.env, check=False)


def causes(run: RunDir) -> list[Cause | None]:
    return [attempt.cause for attempt in history.read(run.journal).attempts]


def jobs_in(printed: str) -> list[str]:
    return re.findall(r"^lr=\S+ +job (\d+)$", printed, re.MULTILINE)


def test_the_commands_of_the_page(cluster: Cluster, shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "runs/first"
    first, second = (RunDir(folder / name) for name in NAMES)
    jobs = jobs_in(shell(LAUNCH))
    assert wait_until(first.metrics.exists, TIMEOUT_S)

    # A job that is requeued keeps its turn.
    cluster.run(["scancel", "--signal=USR2", jobs[0]])
    assert wait_until(lambda: len(causes(first)) == 2, TIMEOUT_S)
    waiting = cluster.job(jobs[1])
    assert (waiting["JobState"], waiting["Reason"]) == ("PENDING", "Dependency")
    states = {row.name: row.state for row in sweep_rows(folder)}
    assert states == {NAMES[0]: "RUNNING", NAMES[1]: "PENDING"}

    assert shell(CANCEL).split()[-2:] == jobs
    for job in jobs:
        cluster.wait_job(job, ["CANCELLED"], TIMEOUT_S)
    # The same command starts what is not finished.
    for job in jobs_in(shell(LAUNCH)):
        cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S)
    assert causes(first) == [Cause.TOLD_TO_STOP, Cause.CANCELLED, Cause.FINISHED]
    assert causes(second) == [Cause.FINISHED]
    # The larger rate has learned more.
    assert [line.split()[:3] for line in shell(STATUS).splitlines()] == [
        ["run", "state", "step"],
        [NAMES[1], "finished", "30"],
        [NAMES[0], "finished", "30"],
    ]
    assert shell(LAUNCH).count("finished: left as it is") == 2
    assert "nothing" in shell(RESUME)
