"""What commands on a login node cost, next to the imports that they cannot do without.

    python benchmarks/login_node.py [--runs 100] [--repeats 15] [--out FILE]

CPU seconds of the user and the system, of the command and of what it starts (a stand-in for
squeue), medians; all take turns, so that they meet the same load. Modules are compiled before.
`imports` is Python with pydantic, yaml and submitit alone; `and BaseModel` also takes BaseModel
from pydantic, which imports most of its modules only then; `and a config` also reads the config
that the dry run renders. A ratio is a command's seconds divided by those of `imports`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

import report

IMPORTS = "import pydantic, yaml, submitit"
SQUEUE = '#!/bin/sh\nfor job in 1 2 3 4 5 6 7 8 9 10; do echo "$job|RUNNING|1|node1|None"; done\n'
COLUMNS = ("step", "loss", "lr", "tokens", "tokens_per_s", *(f"column_{i}" for i in range(50)))
STEPS_PER_CHECKPOINT = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    surroundings = report.surroundings(("pydantic", "pyyaml", "submitit"))
    with tempfile.TemporaryDirectory() as folder:
        samples = _measure(Path(folder), options.runs, options.repeats)
    seconds = {name: median(values) for name, values in samples.items()}
    rows = [
        {"command": name, "CPU s": value, "ratio": value / seconds["imports"]}
        for name, value in seconds.items()
    ]
    report.print_table(rows)
    if options.out:
        measured = {"surroundings": surroundings, "runs": options.runs, "rows": rows}
        report.write(options.out, measured | {"samples": samples})


def _measure(folder: Path, runs: int, repeats: int) -> dict[str, list[float]]:
    """Run all commands in turn, and return the CPU seconds of each."""
    for number in range(runs):
        _write_run(folder / "runs" / f"run_{number}", number)
    (folder / "bin").mkdir()
    squeue = folder / "bin/squeue"
    squeue.write_text(SQUEUE)
    squeue.chmod(0o755)
    config = str(report.ROOT / "config/zero3.yaml")
    read = f"from llada_sft.config import load_config; load_config({config!r})"
    launch = [str(report.ROOT / "launch.py"), "--config", config]
    status = ["-m", "llada_sft", "status", "--root", str(folder / "runs")]
    commands = {
        "imports": ["-c", IMPORTS],
        "and BaseModel": ["-c", f"{IMPORTS}; from pydantic import BaseModel"],
        "and a config": ["-c", f"{IMPORTS}; {read}"],
        "launch.py --dry-run": [*launch, "--nodes", "4", "--dry-run"],
        f"status of {runs} runs": status,
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    # The first turn compiles.
    for turn in range(repeats + 1):
        for name, command in commands.items():
            seconds = _cpu_s(command, folder)
            if turn:
                samples[name].append(seconds)
    return samples


def _cpu_s(command: list[str], folder: Path) -> float:
    """Return the CPU seconds of a command of Python, and of what it starts."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(report.ROOT),
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=report.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    # 2: the model and the data of the config are not on this machine.
    if done.returncode not in (0, 2):
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _write_run(run: Path, number: int) -> None:
    """Write the files that `status` reads; every tenth run has a job that may still run."""
    (run / "logs").mkdir(parents=True)
    steps = range(10, 1010, 10)
    for step in steps[::50]:
        (run / "checkpoints" / f"step_{step}").mkdir(parents=True)
    (run / "config.yaml").write_text(f"data:\n  hook: {run}/code/process_data.py\n")
    rows = [",".join([str(step), "2.5", "1e-5", "1000", "500.5"] + ["0.25"] * 50) for step in steps]
    (run / "logs/metrics.csv").write_text("\n".join([",".join(COLUMNS), *rows, ""]))
    job = {"job_id": str(number // 10 + 1)} if number % 10 == 0 else {}
    entries: list[dict[str, object]] = [
        {"event": "launched"},
        {"event": "started", "attempt": 1, "nodes": "node[1-4]", "world_size": 32},
        {"event": "resumed", "step": 0},
        *({"event": "checkpoint", "step": step} for step in steps[::STEPS_PER_CHECKPOINT]),
    ]
    if not job:
        entries.append({"event": "ended", "cause": "finished", "exit_code": 0, "step": 1000})
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    lines = [json.dumps({"time": now, **entry, **job}) for entry in entries]
    (run / "journal.jsonl").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
