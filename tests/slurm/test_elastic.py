"""A job that begins on two nodes, loses one, and ends on the other: no row lost or repeated.

On its way it is told to stop while its checkpoint is converted for the ranks that are left.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import NODES, Cluster
from conftest import Launched
from processes import wait_until

from llada_sft.cluster import journal
from llada_sft.cluster.causes import Cause
from llada_sft.config import load_config
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_csv import read_metrics
from llada_sft.training.schedule.learning_rate import learning_rate

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
HOOK = Path(__file__).parent / "hooks/note_rows.py"
TIMEOUT_S = 400
NUM_SHARDS, ROWS_PER_SHARD = 4, 80
OVERRIDES = [
    f"data.hook={HOOK}",
    # It is for ranks: it changes the training of the process that loads it.
    "data.try_rows=0",
    "data.validation=null",
    "slurm.elastic=[1, 2]",
    "train.epochs=1",
    "train.micro_batch_size=2",
    "train.checkpoint_every_steps=20",
    # Of 40 steps all but two are on the way down.
    "optim.warmup_steps=2",
    "log.every_n_steps=1",
    "log.tensorboard=false",
]


@pytest.fixture
def only_two_nodes(cluster: Cluster) -> Iterator[None]:
    """Take two nodes away, and give all of them back at the end."""
    cluster.run(["scontrol", "update", f"NodeName={','.join(NODES[2:])}", *taken_out("DRAIN")])
    yield
    for node in NODES:
        state = cluster.run(["sinfo", "--noheader", f"--nodes={node}", "--format=%T"])
        # Others may still end the job: SLURM refuses to resume a node that is in use.
        if state.startswith(("drain", "down")):
            cluster.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"])


def taken_out(state: str) -> list[str]:
    return [f"State={state}", "Reason=test"]


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    row = json.dumps({"prompt": "reverse abc", "response": "cba"}) + "\n"
    for shard in range(NUM_SHARDS):
        (folder / f"{shard}.jsonl").write_text(row * ROWS_PER_SHARD)
    return folder


def trained_rows(run: RunDir, attempt: int, first: int, last: int) -> Counter[tuple[Any, ...]]:
    """Count the rows of the steps first to last, over all ranks."""
    found: Counter[tuple[Any, ...]] = Counter()
    for file in (run.path / "rows").glob(f"{attempt}_*.jsonl"):
        for line in file.read_text().splitlines():
            noted = json.loads(line)
            if first <= noted["step"] <= last:
                found.update(map(tuple, noted["rows"]))
    return found


@pytest.mark.usefixtures("only_two_nodes")
def test_the_loss_of_a_node(cluster: Cluster, launched: Launched, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    run, job = launched("elastic", 400, f"data.train={shards}", *OVERRIDES)
    checkpoint = run.checkpoints / "step_20/checkpoint.json"
    assert wait_until(checkpoint.exists, TIMEOUT_S), cluster.job(job)
    assert cluster.job(job)["NumNodes"] == "2"
    # The node without the batch script; SLURM itself puts the job back into the queue. Drained
    # first: the test's slurmd would report back from a node that is down.
    for state in ("DRAIN", "DOWN"):
        cluster.run(["scontrol", "update", f"NodeName={NODES[1]}", *taken_out(state)])
    log, converting = run.slurm / f"{job}_0_log.out", "converting it from 4 to 2 ranks"
    assert wait_until(lambda: converting in log.read_text(), TIMEOUT_S), cluster.job(job)
    # Every process of the step gets the signal, the converter too: nothing is lost, and the next
    # attempt converts the checkpoint again.
    cluster.run(["scancel", "--signal=USR2", job])
    ended = cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S, restarts=2)
    assert (ended["NumNodes"], ended["Restarts"]) == ("1", "2")
    said = log.read_text()
    assert "2 of 1 to 2 nodes: 4 ranks × 1 accumulated; the global batch stays 8 examples" in said
    assert "1 of 1 to 2 nodes: 2 ranks × 2 accumulated; the global batch stays 8 examples" in said
    assert said.count(converting) == 2
    # SLURM sends TERM first, and there may be time for another checkpoint.
    steps = re.findall(r"^resuming from \S+/step_(\d+)$", said, re.MULTILINE)
    (resumed,) = set(map(int, steps))
    assert len(steps) == 2
    assert resumed >= 20
    ends = [entry for entry in journal.read(run.journal) if entry["event"] == "ended"]
    assert ends[-2]["cause"] == Cause.TOLD_TO_STOP
    assert ends[-2]["step"] == resumed
    assert trained_rows(run, 1, 1, 10**6) == Counter()
    rows = trained_rows(run, 0, 1, resumed) + trained_rows(run, 2, resumed + 1, 10**6)
    assert len(rows) == NUM_SHARDS * ROWS_PER_SHARD
    assert set(rows.values()) == {1}
    assert (run.checkpoints / "latest").read_text() == "step_40\n"
    # The batch is the same, and so is the learning rate of every step.
    assert (
        f"4 -> 2 ranks, the same global batch of 8 examples: 40 steps in all, {40 - resumed}"
        in said
    )
    rates = [float(row["lr"]) for row in read_metrics(run.metrics) if row["loss"]]
    optim = load_config(run.config).optim
    assert rates == pytest.approx([learning_rate(optim, step, 40) for step in range(40)])
