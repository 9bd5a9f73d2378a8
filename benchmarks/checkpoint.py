"""What checksums cost a checkpoint: the seconds of a save with them and without.

    python benchmarks/checkpoint.py [--megabytes 1024] [--repeats 9] [--folder DIR] [--out FILE]

One rank's optimizer shard is written as training writes it: torch.save through a file of Python's,
then fsync. Both kinds are written in turn, so that both see the same disk. A disk is noisy, and
noise only adds: what counts is the fastest of each kind. Also shown: how fast the hash is by
itself, and how long the verification before a resume takes, from the page cache. Memory is warmed
first: a page that this process touches for the first time costs more than writing it. MB are 10^6
bytes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report
import torch
from xxhash import xxh3_128

from llada_sft.training.checksums import read_record
from llada_sft.training.writing import write_shard

PACKAGES = ("torch", "xxhash", "llada-sft")
# Of the time of a save.
LIMIT = 0.05


def optimizer_state(megabytes: int) -> dict[str, Any]:
    """Make what ZeRO-3 keeps of an optimizer: fp32 weights and two moments, in flat slices."""
    count = megabytes * 10**6 // 12
    # Drawn, not zeros: every page is touched.
    flat = [torch.randn(count) for _ in range(3)]
    moments = {"exp_avg": flat[1], "exp_avg_sq": flat[2], "step": torch.tensor(7.0)}
    return {"optimizer_state_dict": {"fp32_flat_groups": [flat[0]], "state": {0: moments}}}


def write_plainly(state: dict[str, Any], path: Path) -> None:
    """Write as `write_shard` does, without a checksum."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds that passed, and those of this process's CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - cpu


def measure_saves(state: dict[str, Any], folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Write with and without a checksum in turn; the first pair only warms up."""
    kinds: dict[str, Callable[[dict[str, Any], Path], Any]] = {
        "plain": write_plainly,
        "checksum": write_shard,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    path = folder / "shard.pt"
    for turn in range(repeats + 1):
        # Whoever comes second finds the file's blocks freed a moment ago: they take turns at that.
        for name in sorted(kinds, reverse=turn % 2 == 1):
            path.unlink(missing_ok=True)
            seconds = timed(lambda write=kinds[name]: write(state, path))
            if turn:
                found[name].append(seconds)
    size = path.stat().st_size / 1e6
    rows = []
    for name, times in found.items():
        seconds = statistics.median(one for one, _ in times)
        rows.append(
            {
                "save": name,
                "size_mb": size,
                "median_s": seconds,
                "fastest_s": min(one for one, _ in times),
                "slowest_s": max(one for one, _ in times),
                "cpu_s": statistics.median(one for _, one in times),
                "mb_per_s": size / seconds,
            }
        )
    return rows


def measure_hash(state: dict[str, Any], folder: Path) -> dict[str, float]:
    """Hash the same bytes in memory, and the file as a resume verifies it."""
    zero = state["optimizer_state_dict"]
    tensors = [zero["fp32_flat_groups"][0], *list(zero["state"][0].values())[:2]]
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    hashed = xxh3_128()
    in_memory = min(
        timed(lambda: [hashed.update(tensor.numpy()) for tensor in tensors])[0] for _ in range(3)
    )
    path = folder / "shard.pt"
    from_file = min(timed(lambda: read_record(path))[0] for _ in range(3))
    return {
        "hash_s": in_memory,
        "hash_mb_per_s": num_bytes / 1e6 / in_memory,
        "verify_s": from_file,
        "verify_mb_per_s": path.stat().st_size / 1e6 / from_file,
    }


def main() -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="the file system to write to")
    parser.add_argument("--out", type=Path, default=Path("checkpoint.json"))
    options = parser.parse_args()
    about = report.surroundings(PACKAGES)
    torch.set_num_threads(1)
    state = optimizer_state(options.megabytes)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        saves = measure_saves(state, Path(name), options.repeats)
        speed = measure_hash(state, Path(name))
    report.print_table(saves)
    report.print_table([speed])
    plain, hashed = saves
    cost = hashed["fastest_s"] / plain["fastest_s"] - 1
    of_medians = hashed["median_s"] / plain["median_s"] - 1
    print(f"checksums cost {cost:+.1%} of a save (of the medians: {of_medians:+.1%})")
    shares = {"cost": cost, "cost_of_medians": of_medians, "limit": LIMIT}
    report.write(options.out, {**about, "saves": saves, "speed": speed, **shares})
    return 0 if cost < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
