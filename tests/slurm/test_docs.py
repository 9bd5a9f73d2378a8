"""The commands of docs/slurm-jobs.md, as they stand there, on a real SLURM: the life of a job."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Shell, job_id
from processes import wait_until

from llada_sft.cluster import history, journal
from llada_sft.run_dir import RunDir
from tests.doc_commands import commands_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
LAUNCH, STATUS, LOGS, JOURNAL, SIGNAL, CANCEL, RESUME, UPDATE = commands_of("docs/slurm-jobs.md")
TIMEOUT_S = 240


@pytest.fixture
def folder(project: Path, tmp_path: Path) -> Path:
    """A checkout with a config of the user's: the demo's network under another name."""
    for name in ("launch.py", "slurm", "utils", "demo"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "config").mkdir()
    text = (ROOT / "config/demo.yaml").read_text()
    for old, new in (("name: demo", "name: mine"), ("max_steps: 400", "max_steps: 120")):
        assert old in text
        text = text.replace(old, new)
    # Two ranks on this machine are enough processes.
    text = text.replace("  ranks_per_node: 2", "  ranks_per_node: 1")
    text = text.replace("  max_length: 64", "  max_length: 64\n  prefetch_steps: 0")
    (tmp_path / "config/mine.yaml").write_text(text)
    return tmp_path


def has_stepped(run: RunDir, attempt: int) -> Callable[[], bool]:
    """Whether an attempt has trained, and checkpointed nothing since."""

    def check() -> bool:
        log = next(iter(run.slurm.glob("*_0_log.out")), None)
        if log is None:
            return False
        parts = log.read_text().split("signals: ")
        return len(parts) > attempt and re.search(r"^step \d+/", parts[attempt], re.M) is not None

    return check


def test_the_life_of_a_job(cluster: Cluster, folder: Path, shell: Shell) -> None:
    run = RunDir(folder / "runs/mine")
    job = job_id(shell(LAUNCH))
    assert wait_until(has_stepped(run, 1), TIMEOUT_S)
    assert f"job          {job} RUNNING" in shell(STATUS)
    assert "/120 " in shell(LOGS)
    assert '"event": "started"' in shell(JOURNAL)

    shell(SIGNAL)
    # These come while the ranks agree and save, and say nothing new.
    for name in ("TERM", "USR2"):
        cluster.run(["scancel", f"--signal={name}", job])
    cluster.wait_job(job, ["RUNNING"], TIMEOUT_S, restarts=1)
    assert wait_until(has_stepped(run, 2), TIMEOUT_S)
    shell(CANCEL)
    assert cluster.wait_job(job, ["CANCELLED"], TIMEOUT_S)["Restarts"] == "1"
    assert list(run.checkpoints.glob("step_*/checkpoint.json"))

    again = job_id(shell(RESUME))
    assert cluster.wait_job(again, ["COMPLETED"], TIMEOUT_S)["TimeLimit"] == "01:00:00"
    ended = [e for e in journal.read(run.journal) if e["event"] == "ended"]
    assert [e["cause"] for e in ended] == ["told to stop", "cancelled", "finished"]
    # No step was lost: each attempt went on from the last one's.
    attempts = history.read(run.journal).attempts
    assert [attempt.resumed_step for attempt in attempts[1:]] == [e["step"] for e in ended[:2]]
    # The signal is noted before the save that it asks for.
    signal, checkpoint, end = attempts[0].entries[-3:]
    assert [e["event"] for e in (signal, checkpoint, end)] == ["signal", "checkpoint", "ended"]
    assert signal["cause"] == "told to stop"
    # A step may end when the signal has reached one node alone.
    assert signal["detail"] in ("all ranks", "rank 0", "rank 1")
    assert (end["exit_code"], end["step"]) == (0, checkpoint["step"])
    assert checkpoint["num_bytes"] > 0
    owners = "signals: SIGUSR1 default, SIGUSR2 llada_sft.cluster.rank.signals, SIGTERM llada_sft"
    logs = [(run.slurm / f"{job}_{rank}_log.out").read_text() for rank in range(2)]
    assert [log.count(owners) for log in logs] == [2, 0]
    shown = shell(STATUS)
    assert all(f"{e['cause']}" in shown for e in ended)
    shutil.rmtree(run.path)


BAD_HOOK = "def process_data(record, tokenizer, max_length):\n    return record['nothing']\n"


def test_a_hook_is_fixed(cluster: Cluster, folder: Path, shell: Shell) -> None:
    run = RunDir(folder / "runs/mine")
    good = (folder / "utils/process_data.py").read_text()
    (folder / "utils").unlink()
    (folder / "utils").mkdir()
    hook = folder / "utils/process_data.py"
    hook.write_text(BAD_HOOK)
    config = folder / "config/mine.yaml"
    config.write_text(config.read_text().replace("max_steps: 120", "max_steps: 10"))
    with pytest.raises(AssertionError, match="hook raised KeyError: 'nothing'"):
        shell(LAUNCH)
    assert not run.path.exists()
    config.write_text(config.read_text().replace("  max_length", "  try_rows: 0\n  max_length"))
    failed = job_id(shell(LAUNCH))
    assert cluster.wait_job(failed, ["FAILED"], TIMEOUT_S)["ExitCode"] == "2:0"
    assert "hook raised KeyError: 'nothing' (process_data.py line 2)" in shell(STATUS)
    # What the run has is not what was edited.
    hook.write_text(good)
    printed = shell(UPDATE)
    assert "-    return record['nothing']" in printed
    assert "file             changed  process_data.py" in printed
    cluster.wait_job(job_id(printed), ["COMPLETED"], TIMEOUT_S)
    events = [e["event"] for e in journal.read(run.journal)]
    assert events.count("changed") == 1
    assert journal.read(run.journal)[-1]["cause"] == "finished"
