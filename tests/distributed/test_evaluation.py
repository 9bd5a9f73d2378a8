"""`llada-sft eval` on one and on two ranks, as a user starts it; killed, and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluation.project import WORDS, write_model, write_tasks

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.slow]
# Three different answers are scored for each word.
NUM_REQUESTS = {"reverse": len(WORDS), "choose": 3 * len(WORDS)}
SHORT = ["generation.gen_length=8", "generation.block_length=4", "generation.batch_size=1"]
# Few-shot examples are the same for all processes.
SHORT += ["num_fewshot=2"]
# A chunk for each request.
SHORT += ["likelihood.max_tokens=1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_model(folder / "model")
    write_tasks(folder / "tasks")
    return folder


def start(project: Path, results: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "llada_sft", "eval", "model", "--tasks", "reverse,choose"),
            *("--include-path", "tasks", "--results", results, *arguments, *SHORT),
        ],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_DATASETS_CACHE": str(project / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(project: Path, results: str, *arguments: str) -> None:
    process = start(project, results, *arguments)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output


def entries(results: Path, task: str) -> Iterator[dict[str, Any]]:
    """Yield what all processes answered; whole lines alone."""
    for file in results.glob(f"{task}_*/answers/*.jsonl"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def scores(results: Path, task: str) -> tuple[Any, list[Any]]:
    (folder,) = results.glob(f"{task}_*")
    samples = (folder / f"samples_{task}.jsonl").read_text().splitlines()
    result = json.loads((folder / "results.json").read_text())["results"][task]
    return result, [json.loads(sample)["resps"] for sample in samples]


def test_one_and_two_ranks_give_the_same_scores_and_ask_once(project: Path) -> None:
    run(project, "one")
    run(project, "two", "--ranks", "2")
    for task, number in NUM_REQUESTS.items():
        assert scores(project / "one", task) == scores(project / "two", task)
        for results in ("one", "two"):
            keys = [entry["key"] for entry in entries(project / results, task)]
            assert len(keys) == len(set(keys)) == number
        ranks = {path.name[:6] for path in project.glob(f"two/{task}_*/answers/*")}
        assert ranks == {"rank_0", "rank_1"}


def test_what_was_killed_continues_with_the_rest_on_other_ranks(project: Path) -> None:
    process = start(project, "killed", "--ranks", "2")
    deadline = time.monotonic() + 200
    while len(list(entries(project / "killed", "reverse"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = sum(len(list(entries(project / "killed", task))) for task in NUM_REQUESTS)
    assert 2 <= before < sum(NUM_REQUESTS.values())
    run(project, "killed")
    for task, number in NUM_REQUESTS.items():
        keys = [entry["key"] for entry in entries(project / "killed", task)]
        assert len(keys) == len(set(keys)) == number


def test_a_rank_that_is_killed_ends_the_others(project: Path) -> None:
    process = start(project, "ended", "--ranks", "2")
    deadline = time.monotonic() + 200
    while not (ranks := ranks_of(process.pid)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(ranks[0], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert not list((project / "ended").glob("*/results.json"))


def ranks_of(pid: int) -> list[int]:
    """Return the processes of both ranks, once they are there."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ranks = [int(child) for child in children if is_rank(child)]
    return ranks if len(ranks) == 2 else []


def is_rank(pid: str) -> bool:
    return b"\0llada_sft.evaluation\0rank\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
