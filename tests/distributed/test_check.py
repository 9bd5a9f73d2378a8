"""What `llada-sft check` says of an epoch is what `launch.py --local` then logs, to the digit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.demo.data import write_demo
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_csv import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
# Rank 0 has far more to do than rank 1, some rows are bad, and some too long.
ROWS = {"shard_000.jsonl": 150, "shard_001.jsonl": 40, "shard_002.jsonl": 70}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a folder to launch from, with uneven shards of dialogues."""
    for name in ("launch.py", "config", "slurm", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_demo(tmp_path / "demo")
    train = tmp_path / "demo/data/train"
    (train / "shard_003.jsonl").unlink()
    for name, num_rows in ROWS.items():
        records = [json.loads(line) for line in (train / name).read_text().splitlines()]
        rows = [json.dumps(_dialogue(records, number)) for number in range(num_rows)]
        rows[7] = '{"messages": []}'
        (train / name).write_text("\n".join(rows) + "\n")
    return tmp_path


def _dialogue(records: list[dict[str, str]], number: int) -> dict[str, object]:
    """Make one to four turns of question and answer."""
    messages = []
    for record in records[4 * number : 4 * number + 1 + number % 4]:
        messages.append({"role": "user", "content": record["prompt"]})
        messages.append({"role": "assistant", "content": record["response"]})
    return {"messages": messages}


def call(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command], cwd=project, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "batching",
    [
        ["train.micro_batch_size=8", "train.accumulate_grad_batches=2"],
        [
            *("data.batching=packed", "data.max_tokens=150", "data.end=2"),
            *("train.micro_batch_size=1", "data.on_too_long=skip"),
        ],
    ],
    ids=["padded", "packed"],
)
def test_tokens_and_steps_are_those_that_the_training_logs(
    project: Path, batching: list[str]
) -> None:
    overrides = [
        *batching,
        *("train.epochs=1", "train.max_steps=null", "train.validate_every_steps=1000"),
        *("log.every_n_steps=1", "log.tensorboard=false"),
        *("data.max_length=60", "data.max_bad_fraction=0.1", "data.validation=null"),
    ]
    checked = call(project, "-m", "llada_sft", "check", "config/demo.yaml", "--json", *overrides)
    found = json.loads(checked.stdout)
    call(project, "launch.py", "--config", "config/demo.yaml", "--local", *overrides)
    logged = read_metrics(RunDir(project / "runs/demo").metrics)

    def total(column: str) -> int:
        return sum(int(row[column]) for row in logged)

    epoch, train = found["epoch"], found["train"]
    assert epoch["steps"] == len(logged) == int(logged[-1]["step"])
    assert epoch["tokens"] == total("tokens") == sum(r["tokens"] for r in found["per_rank"])
    assert epoch["all_tokens"] == total("all_tokens")
    assert epoch["examples"] == train["examples"] == total("examples")
    assert train["too_long"]["clipped"] + train["too_long"]["skipped"] == total("too_long") > 0
    # Rows that are read after the last step has its examples are logged no more.
    assert train["rows"] == train["rows_read"] == sum(ROWS.values())
    assert train["bad_rows"]["rows"] == len(ROWS) == total("bad_rows")
    assert [rank["rows"] for rank in found["per_rank"]] == [220, 40]
    assert found["per_rank"][1]["steps"] < epoch["steps"]
