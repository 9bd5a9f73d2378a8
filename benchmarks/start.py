"""What the start of a rank costs: from its process to the end of the first optimizer step.

    python benchmarks/start.py [--before DIR] [--repeats 5] [--out FILE]

One rank trains config/demo.yaml on this machine's CPU, in a process of its own that ends when its
first step is made. `--before` names another checkout (a git worktree of an older commit): the two
take turns, so that both meet the same load. Numbers are medians.

CPU seconds are those of user and system together, of the rank and of all processes that it has
started, whether they have ended or not. Phases are parts of the rank's own CPU seconds: `python` is
the interpreter and the job around the training, `imports` torch and everything after it, `nodes`
the comparison of the nodes, `find`, `data` and `agree` the ranks, the resume and the dataset,
`build` the network, Lightning and DeepSpeed's initialize. `imports` is divided by `-X importtime`
into what each package's own modules cost, in a start of its own, which that makes slower; 0 for a
package means that it is not imported.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import report

PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "torchmetrics", "matplotlib")
ENVIRONMENT = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "NODE_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
}
DATA = "import sys; from llada_sft.demo.data import write_demo, Path; write_demo(Path(sys.argv[1]))"
PREPARE = """
import sys
from pathlib import Path
from llada_sft.cluster import journal
from llada_sft.cluster.launch import prepare
from llada_sft.config import load_config
folder, name = Path(sys.argv[1]), sys.argv[2]
config = load_config("config/demo.yaml", ["slurm.ranks_per_node=1", f"run.name={name}"])
run, _ = prepare.create(config, folder, ["start.py"])
journal.append(run.journal, {"event": "started", "attempt": 1})
print(run.path)
"""
# The marks are set where every version of the package calls the watchdog, or the collector.
RANK = """
import gc, json, os, sys, time
from pathlib import Path
from llada_sft.cluster import run_rank
from llada_sft.cluster.rank.watchdog import Watchdog

began, marks = float(sys.argv[2]), {}
names = iter(["find", "data", "agree"])

def mark(name):
    own = os.times()
    marks[name] = [own.user + own.system, time.time() - began]

def others():
    own, tick, parents, spent = os.times(), os.sysconf("SC_CLK_TCK"), {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(path.parent.name)
        parents[number] = int(fields[1])
        spent[number] = sum(map(int, fields[11:15])) / tick
    mine = {os.getpid()}
    for _ in range(4):
        mine |= {number for number, parent in parents.items() if parent in mine}
    alive = sum(spent[number] for number in mine - {os.getpid()})
    return own.children_user + own.children_system + alive

def pulse(self, phase, step):
    if phase == "start":
        mark(next(names))
    elif phase == "step" and "build" not in marks:
        mark("build")
    elif phase == "step" and step == 1:
        mark("step")
        print("MARKS " + json.dumps({"marks": marks, "others": others()}), flush=True)
        os.killpg(0, 9)

def freeze():
    if "imports" in marks:
        return
    mark("imports")
    preflight = sys.modules.get("llada_sft.training.nodes.preflight")
    if preflight is None:
        mark("nodes")
        return
    compare_nodes = preflight.Preflight.compare_nodes

    def compared(self):
        compare_nodes(self)
        mark("nodes")

    preflight.Preflight.compare_nodes = compared

Watchdog.pulse, gc.freeze = pulse, freeze
mark("python")
run_rank(sys.argv[1])
"""


def _environment(checkout: Path) -> dict[str, str]:
    """Return the environment of a process that uses the package in a checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | ENVIRONMENT | {"PYTHONPATH": str(checkout)}


def prepare(checkout: Path, folder: Path, name: str) -> str:
    """Prepare a run directory of the demo, for one rank, and return its path."""
    call = [sys.executable, "-c", PREPARE, str(folder), name]
    output = subprocess.check_output(call, cwd=checkout, env=_environment(checkout), text=True)
    return output.splitlines()[-1]


def start(checkout: Path, run: str, *options: str) -> tuple[dict[str, Any], str]:
    """Start a rank until its first step is made; return its marks, and what it wrote to stderr."""
    began = subprocess.check_output(["date", "+%s.%N"], text=True).strip()
    port = str(20000 + os.getpid() % 20000)
    done = subprocess.run(
        [sys.executable, *options, "-c", RANK, run, began],
        cwd=checkout,
        env=_environment(checkout) | {"MASTER_PORT": port},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    found = re.search(r"^MARKS (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{checkout}: the rank made no step:\n{done.stdout}\n{done.stderr}")
    return json.loads(found[1]), done.stderr


def seconds(measured: dict[str, Any]) -> dict[str, float]:
    """Return the CPU seconds of each phase and of all, and the wall seconds of all."""
    marks = measured["marks"]
    own = [cpu for cpu, _ in marks.values()]
    phases = zip(marks, [0.0, *own], own, strict=False)
    return {
        "cpu_s": own[-1] + measured["others"],
        "wall_s": marks["step"][1],
        **{name: end - begin for name, begin, end in phases},
        "others": measured["others"],
    }


def imports(checkout: Path, run: str) -> dict[str, Any]:
    """Return the seconds that the modules of each package cost themselves, in one start."""
    _, stderr = start(checkout, run, "-X", "importtime")
    spent: dict[str, float] = {}
    count = 0
    for line in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", stderr, re.MULTILINE):
        package = line[1].partition(".")[0]
        if line[1].startswith(("torch._dynamo", "torch._inductor")):
            package = ".".join(line[1].split(".")[:2])
        spent[package] = spent.get(package, 0.0) + int(line[0]) / 1e6
        count += 1
    named = (*PACKAGES, "torch._dynamo", "torch._inductor", "sympy", "llada_sft")
    all_s = sum(spent.values())
    rest = all_s - sum(spent.get(name, 0.0) for name in named)
    return {
        "modules": count,
        "all": all_s,
        **{name: spent.get(name, 0.0) for name in named},
        "rest": rest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    checkouts = {"now": report.ROOT}
    if options.before:
        checkouts = {"before": options.before.resolve(), **checkouts}
    surroundings = report.surroundings(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = _environment(report.ROOT)
        subprocess.run(
            [sys.executable, "-c", DATA, str(folder / "demo")], check=True, env=environment
        )
        for part in ("utils", "slurm"):
            shutil.copytree(report.ROOT / part, folder / part)
        runs = {key: prepare(path, folder, key) for key, path in checkouts.items()}
        # This first start of each also writes its compiled modules and the index of the rows.
        packages = [{"": key} | imports(checkouts[key], run) for key, run in runs.items()]
        samples: dict[str, list[dict[str, float]]] = {key: [] for key in checkouts}
        for _ in range(options.repeats):
            for key, path in checkouts.items():
                samples[key].append(seconds(start(path, runs[key])[0]))
    starts = [
        {"": key} | {column: median(one[column] for one in taken) for column in taken[0]}
        for key, taken in samples.items()
    ]
    report.print_table(starts)
    report.print_table(packages)
    measured: dict[str, Any] = {"surroundings": surroundings, "starts": starts, "imports": packages}
    if options.before:
        ratio = {column: starts[1][column] / starts[0][column] for column in ("cpu_s", "wall_s")}
        print(f"now/before: CPU {ratio['cpu_s']:.2f}, wall {ratio['wall_s']:.2f}")
        measured["ratio"] = ratio
    if options.out:
        report.write(options.out, measured | {"samples": samples})


if __name__ == "__main__":
    main()
