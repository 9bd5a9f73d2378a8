"""What checksums cost a checkpoint: the share of a save that is spent on them.

    python benchmarks/checkpoint.py [--megabytes 1024] [--repeats 9] [--folder DIR] [--out FILE]

One rank's optimizer shard is written as training writes it: torch.save through a file of Python's,
then fsync. Within each save it is measured how long the writes take with their hashing, and how
long without: the difference is the cost, whatever the disk does at that time. Saves without any
checksum are made in turn with them, for comparison; on a noisy disk the two differ by chance. Also
shown: how fast the hash is by itself, and how long the verification before a resume takes, from the
page cache. Memory is warmed first: a page that this process touches for the first time costs more
than writing it. MB are 10^6 bytes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report
import torch
from xxhash import xxh3_128

from llada_sft.training.checkpoint.checksums import HashingFile, record_of_file

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


class Timed:
    """Adds up how long the writes of a file take, or of what stands for one."""

    def __init__(self, file: Any) -> None:
        self._file, self.seconds = file, 0.0

    def write(self, data: bytes) -> int:
        began = time.perf_counter()
        try:
            return int(self._file.write(data))
        finally:
            self.seconds += time.perf_counter() - began

    def flush(self) -> None:
        self._file.flush()


def write_plainly(state: dict[str, Any], path: Path) -> float:
    """Write as `write_shard` does, without a checksum."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    return 0.0


def write_hashed(state: dict[str, Any], path: Path) -> float:
    """Write as `write_shard` does, and return the seconds that hashing added."""
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        inner = Timed(file)
        outer = Timed(HashingFile(inner, hasher))
        torch.save(state, outer)
        file.flush()
        os.fsync(file.fileno())
    return outer.seconds - inner.seconds


def measure_saves(state: dict[str, Any], folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Write with and without a checksum in turn; the first pair only warms up."""
    kinds = {"plain": write_plainly, "checksum": write_hashed}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    path = folder / "shard.pt"
    for turn in range(repeats + 1):
        # Whoever comes second finds the file's blocks freed a moment ago: they take turns at that.
        for name in sorted(kinds, reverse=turn % 2 == 1):
            path.unlink(missing_ok=True)
            began = time.perf_counter()
            added = kinds[name](state, path)
            if turn:
                found[name].append((time.perf_counter() - began, added))
    size = path.stat().st_size / 1e6
    return [
        {
            "save": name,
            "size_mb": size,
            "median_s": statistics.median(save for save, _ in times),
            "fastest_s": min(save for save, _ in times),
            "slowest_s": max(save for save, _ in times),
            "added_s": statistics.median(added for _, added in times),
            "share": statistics.median(added / save for save, added in times),
        }
        for name, times in found.items()
    ]


def fastest(call: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of three calls."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def measure_hash(state: dict[str, Any], folder: Path) -> dict[str, float]:
    """Hash the same bytes in memory, and the file as a resume verifies it."""
    zero = state["optimizer_state_dict"]
    tensors = [zero["fp32_flat_groups"][0], *list(zero["state"][0].values())[:2]]
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    hashed = xxh3_128()
    in_memory = fastest(lambda: [hashed.update(tensor.numpy()) for tensor in tensors])
    path = folder / "shard.pt"
    from_file = fastest(lambda: record_of_file(path))
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
    share = saves[1]["share"]
    print(f"checksums take {share:.1%} of a save")
    report.write(options.out, {**about, "saves": saves, "speed": speed, "limit": LIMIT})
    return 0 if share < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
