"""How fast `llada-sft shard` makes shards, against `cp` of the same file in the same run.

    python benchmarks/shard.py [--mb 2000] [--shards 16] [--repeat 5] [--folder DIR] [--out FILE]

The input is one .jsonl of chat rows of 2 KB, in the page cache. The commands take turns. Before
each, what the last one wrote is removed, the disk is waited for, and as much as the command will
write is written once and removed: a virtual machine gives freed memory back to its host, and who is
the first to get it again would pay for all. Of each command the medians of

wall_s     the clock's seconds, the start of Python among them
cpu_s      seconds of CPU, user and system, all threads together
peak_mb    most memory (MB are 10^6 bytes); of `cp`, what this script has
mb_per_s   bytes of the input over wall_s
of_cp      speed in percent of that of `cp`: the median over the turns, each with its own `cp`
cpu_of_cp  the same, by seconds of CPU

Neither `cp` nor the others wait for the disk.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import chat_rows
import report

PACKAGES = ("numpy", "orjson", "isal", "backports.zstd")
TARGET_PERCENT, TARGET_MB = 40, 300
# Texts are drawn this often only: after that the same rows come again.
MAX_DRAWN = 20_000
CP = "cp"


class Run(NamedTuple):
    """What one run of a command took."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def write_input(path: Path, num_bytes: int) -> None:
    """Write chat rows until there are so many bytes."""
    drawn = min(MAX_DRAWN, num_bytes // chat_rows.ROW_BYTES + 1)
    (source,) = chat_rows.write_shards(path.parent / "drawn", 1, drawn)
    rows = source.read_bytes()
    with path.open("wb") as file:
        while file.tell() < num_bytes:
            file.write(rows)
    shutil.rmtree(source.parent)


def warm_memory(path: Path, num_bytes: int) -> None:
    """Write as much as a command will, and remove it."""
    piece = bytes(2**20)
    with path.open("wb", buffering=0) as file:
        while file.tell() < num_bytes:
            file.write(piece)
    path.unlink()


def measure_one(command: list[str], written: Path, num_bytes: int) -> Run:
    """Run a command that writes so much, and remove what it has written."""
    os.sync()
    warm_memory(written, num_bytes)
    began = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    # Unlike subprocess, it tells what this one process took.
    _, status, used = os.wait4(process, 0)
    wall_s = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}")
    if written.is_dir():
        shutil.rmtree(written)
    else:
        written.unlink()
    return Run(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def measure(path: Path, num_shards: int, repeat: int) -> dict[str, list[Run]]:
    """Let all commands take turns."""
    out = path.parent / "out"
    shard = [sys.executable, "-m", "llada_sft", "shard", str(path), str(out)]
    shard += ["--num-shards", str(num_shards)]
    commands = {
        CP: [CP, str(path), str(out)],
        "shard": shard,
        "shard --shuffle": [*shard, "--shuffle"],
        "shard --compress zst": [*shard, "--compress", "zst"],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(repeat):
        for name, command in commands.items():
            runs[name].append(measure_one(command, out, path.stat().st_size))
    return runs


def table(runs: dict[str, list[Run]], num_bytes: int) -> list[dict[str, Any]]:
    """Make a line for each command."""
    lines = []
    for name, taken in runs.items():
        pairs = list(zip(runs[CP], taken, strict=True))
        median = {
            field: statistics.median(getattr(run, field) for run in taken) for field in Run._fields
        }
        of_cp = 100 * statistics.median(cp.wall_s / run.wall_s for cp, run in pairs)
        line: dict[str, Any] = {
            "command": name,
            **median,
            "mb_per_s": num_bytes / 1e6 / median["wall_s"],
            "of_cp": of_cp,
            "cpu_of_cp": 100 * statistics.median(cp.cpu_s / run.cpu_s for cp, run in pairs),
            "reached": "",
        }
        if name == "shard":
            reached = of_cp >= TARGET_PERCENT and max(run.peak_mb for run in taken) < TARGET_MB
            line["reached"] = "yes" if reached else "NO"
        lines.append(line)
    return lines


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=2000, help="of the input")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to write; needs three times as much room"
    )
    parser.add_argument("--out", type=Path, default=Path("shard.json"))
    parser.add_argument("--write-input", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_input:
        write_input(options.write_input, options.mb * 10**6)
        return
    about = report.surroundings(PACKAGES)
    os.environ["PYTHONPATH"] = str(report.ROOT)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name, "input.jsonl")
        # By another process: a command's peak begins with what this one has.
        call = [sys.executable, __file__, "--mb", str(options.mb), "--write-input", str(path)]
        subprocess.run(call, check=True)
        num_bytes = path.stat().st_size
        runs = measure(path, options.shards, options.repeat)
    lines = table(runs, num_bytes)
    report.print_table(lines)
    sizes = {"bytes": num_bytes, "shards": options.shards, "repeat": options.repeat}
    all_runs = {name: [run._asdict() for run in taken] for name, taken in runs.items()}
    report.write(options.out, {**about, **sizes, "lines": lines, "runs": all_runs})


if __name__ == "__main__":
    main()
