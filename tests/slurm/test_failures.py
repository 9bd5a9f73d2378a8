"""A rank of a job fails on a real SLURM: the others are gone, the cause is told, and what follows.

The faults are in the run's hook, which is loaded in the process of each rank.
"""

from datetime import datetime
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Launched

from llada_sft.cluster import journal
from llada_sft.cluster.journal import Entry
from llada_sft.run_dir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
TIMEOUT_S = 400
# Its hooks are for ranks: they change the training of the process that loads them.
NOT_TRIED = "data.try_rows=0"
OVERRIDES = ["train.checkpoint_every_steps=2", "log.every_n_steps=1", "log.tensorboard=false"]
# At step 3, the one after the first checkpoint.
HOOK = """
import os
import time
from pathlib import Path

from llada_sft.data.records import encode_record
from llada_sft.training.module import DiffusionModule

RUN = Path(__file__).parents[1]
training_step = DiffusionModule.training_step


def failing(self, batch, batch_idx):
    if self.global_step == 3 and os.environ["SLURM_PROCID"] == "3":
        FAULT
    return training_step(self, batch, batch_idx)


DiffusionModule.training_step = failing


def process_data(record, tokenizer, max_length):
    return encode_record(record, tokenizer)
"""
# As in a shell of `srun --pty bash`; each would change the job, or end its step.
OF_ANOTHER_JOB = {
    "SLURM_NTASKS": "1",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_MEM_PER_NODE": "100",
    "SLURM_RESTART_COUNT": "5",
    "SLURM_EXPORT_ENV": "NONE",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_TIMELIMIT": "1",
}
RAISE = '(RUN / "faults").open("a").write(f"{time.time()}\\n"); raise ValueError("of the test")'


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    return tmp_path / "hook.py"


def entries(run: RunDir, event: str) -> list[Entry]:
    return [entry for entry in journal.read(run.journal) if entry["event"] == event]


def test_the_same_exception_twice_ends_the_job(
    cluster: Cluster,
    launched: Launched,
    hook: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is restarted once, whatever setup.sh sets and the launching shell has of another job."""
    hook.write_text(HOOK.replace("FAULT", RAISE))
    (tmp_path / "setup.sh").write_text("set -euo pipefail\ntrap 'exit 3' EXIT\ncd /\n")
    for name, value in OF_ANOTHER_JOB.items():
        monkeypatch.setenv(name, value)
    setup = f"slurm.setup={tmp_path}/setup.sh"
    run, job = launched("raises", 12, f"data.hook={hook}", NOT_TRIED, setup, *OVERRIDES)
    fields = cluster.wait_job(job, ["FAILED"], TIMEOUT_S, restarts=1)
    assert (fields["ExitCode"], fields["Restarts"]) == ("70:0", "1")
    failed = entries(run, "failed")
    assert [(e["attempt"], e["rank"], e["cause"], e["error"], e["step"]) for e in failed] == [
        (attempt, 3, "exception", "ValueError: of the test", 3) for attempt in (1, 2)
    ]
    assert failed[0]["node"] == failed[1]["node"] == "node2"
    # Once for each attempt, and nowhere else in the journal.
    assert run.journal.read_text().count("Traceback") == 2
    assert failed[0]["traceback"].endswith("ValueError: of the test\n")
    (given_up,) = entries(run, "given_up")
    assert given_up["detail"] == (
        "the same exception at step 3 in two attempts: ValueError: of the test"
    )
    times = [float(line) for line in (run.path / "faults").read_text().split()]
    ends = [datetime.fromisoformat(e["time"]).timestamp() for e in entries(run, "ended")]
    # srun has come back: no rank is left.
    assert [end - begin < 15 for begin, end in zip(times, ends, strict=True)] == [True, True]
