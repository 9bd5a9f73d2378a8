"""Record tests/golden/report_run: a small real run with two attempts, for the tests of the report.

    python tests/golden/record_report_run.py

trains the demo's network on two sources with some bad rows, kills a rank in the first attempt, lets
the run resume, and keeps the files that the report reads. Numbers differ from recording to
recording (speed, memory); tests compare with the files, not with constants.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llada_sft.demo.data import make_records, make_tokenizer
from llada_sft.run_dir import RunDir

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "report_run"
KILL_AT_STEP = 70
BAD_LINES = ('{"prompt": "reverse abc"', '{"prompt": 5, "response": "cba"}', "\0")
OVERRIDES = (
    "run.name=report_run",
    "data.train={short: {path: demo/data/short}, long: {path: demo/data/long, weight: 2.0}}",
    "data.max_bad_fraction=0.2",
    "train.max_steps=160",
    "train.validate_every_steps=20",
    "train.checkpoint_every_steps=40",
    "train.micro_batch_size=16",
    "validation.answers=4",
    "validation.answer_length=6",
    "log.every_n_steps=4",
)


def write_data(project: Path) -> None:
    """Write two sources, short and long words, each with bad lines in it."""
    train, held_out = make_records()
    for name, lengths in (("short", {3, 4}), ("long", {5})):
        lines = [json.dumps(one) for one in train if len(one["response"]) in lengths]
        for shard in range(2):
            _write(
                project / f"demo/data/{name}/shard_{shard}.jsonl", [*BAD_LINES, *lines[shard::2]]
            )
    _write(project / "demo/data/heldout/shard_0.jsonl", [json.dumps(one) for one in held_out])
    make_tokenizer().save_pretrained(project / "demo/tokenizer")


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def train(project: Path) -> RunDir:
    """Train with a rank that is killed on the way, and resume."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for folder in ("config", "slurm", "utils"):
        shutil.copytree(ROOT / folder, project / folder)
    run = RunDir(project / "runs/report_run")
    launch = [sys.executable, str(ROOT / "launch.py"), "--config", "config/demo.yaml", "--local"]
    first = subprocess.Popen([*launch, *OVERRIDES], cwd=project, env=environment)
    while first.poll() is None and _last_step(run) < KILL_AT_STEP:
        time.sleep(0.1)
    if first.poll() is None:
        os.kill(_rank_pid(first.pid), signal.SIGKILL)
    first.wait()
    attempts = run.journal.read_text(encoding="utf-8").count('"started"')
    if attempts > 1:
        return run
    resume = [sys.executable, "-m", "llada_sft", "resume", str(run.path), "--local"]
    subprocess.run(resume, cwd=project, env=environment, check=True)
    return run


def _last_step(run: RunDir) -> int:
    if not run.metrics.is_file():
        return 0
    last = run.metrics.read_text().splitlines()[-1].split(",")[0]
    return int(last) if last.isdecimal() else 0


def _rank_pid(parent: int) -> int:
    """Return the process of a rank: a child of the launcher."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(children[-1])


def keep(run: RunDir, project: Path) -> None:
    """Copy what the report reads, with the project's path as /project."""
    shutil.rmtree(RECORDED, ignore_errors=True)
    kept = [run.config, run.command, run.versions, run.journal, run.metrics, run.answers]
    for path in [*kept, *run.quarantine.glob("rank_*.jsonl")]:
        copy = RECORDED / path.relative_to(run.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        text = text.replace(str(project), "/project").replace(str(ROOT), "/code")
        copy.write_text(re.sub(r'"node": "[^"]*"', '"node": "node1"', text), encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder).resolve()
        write_data(project)
        keep(train(project), project)


if __name__ == "__main__":
    main()
