"""How long a rank takes until its first row, and what each kind of file costs.

    python benchmarks/data_start.py [--files 65536] [--ranks 4096] [--index-mb 1024] [--out FILE]

1. start: a folder of many small shards; one rank in a fresh process lists them, takes its own,
   indexes them and reads a row. Its peak memory is that of the whole process, Python and numpy
   included, torch not: the data plane starts without it. cpu_s is the same on a loaded machine.
2. index: one shard of chat-like rows as .jsonl, .jsonl.gz, .jsonl.zst; the first start, which scans
   (and decompresses), and the second, which does not. Files are in the page cache: what is measured
   is the work, not the disk. MB are of text, 10^6 bytes.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report

PACKAGES = ("numpy", "isal", "backports.zstd", "fsspec")
LONG_AGO = 1_600_000_000


def start(folder: Path, ranks: int, cache: Path) -> dict[str, Any]:
    """Start as the last rank but one of many, in this process."""
    began, cpu_began = time.perf_counter(), time.process_time()
    from llada_sft.config.sections.data import DataConfig
    from llada_sft.data.rows.stream import RowStream
    from llada_sft.data.sources import list_sources

    imported = time.perf_counter()
    (source,) = list_sources(DataConfig(train=str(folder)), epochs=1)
    listed = time.perf_counter()
    mine = source.of_rank(max(0, ranks - 2), ranks).shards
    stream = RowStream(mine, seed=0, shuffle=True, cache_dir=cache)
    next(stream.rows(0, stream.start_positions()))
    ended = time.perf_counter()
    return {
        "shards": len(source.shards),
        "ranks": ranks,
        "own_shards": len(mine),
        "import_s": imported - began,
        "list_s": listed - imported,
        "assign_index_read_s": ended - listed,
        "total_s": ended - began,
        "cpu_s": time.process_time() - cpu_began,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def measure_starts(folder: Path, files: int, ranks: int) -> list[dict[str, Any]]:
    """Write the shards, and start on them twice, each time in a process of its own."""
    data = folder / "many"
    data.mkdir()
    for number in range(files):
        path = data / f"shard_{number:06}.jsonl"
        path.write_bytes(b'{"prompt": "a", "response": "b"}\n' * (number % 4 + 1))
        os.utime(path, (LONG_AGO, LONG_AGO))
    call = [sys.executable, __file__, "--start", str(data), "--ranks", str(ranks)]
    call += ["--cache", str(folder / "cache")]
    return [json.loads(subprocess.check_output(call)) | {"start": n} for n in ("first", "second")]


def measure_kinds(folder: Path, megabytes: int) -> list[dict[str, Any]]:
    """Index one shard of each kind, twice."""
    from backports import zstd

    from llada_sft.data.storage.cache import Cache

    text = chat_like(megabytes)
    contents = {
        ".jsonl": text,
        ".jsonl.gz": gzip.compress(text, 6),
        ".jsonl.zst": zstd.compress(text, 3),
    }
    rows = []
    for suffix, content in contents.items():
        path = folder / f"large{suffix}"
        path.write_bytes(content)
        os.utime(path, (LONG_AGO, LONG_AGO))
        cache = Cache(folder / "kinds")
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            index, _ = cache.prepare(path)
            seconds.append(time.perf_counter() - began)
        rows.append(
            {
                "kind": suffix,
                "text_mb": len(text) / 1e6,
                "stored_mb": len(content) / 1e6,
                "rows": len(index.starts),
                "first_s": seconds[0],
                "first_mb_per_s": len(text) / 1e6 / seconds[0],
                "second_s": seconds[1],
            }
        )
        path.unlink()
    return rows


def chat_like(megabytes: int) -> bytes:
    """Make rows of 200 to 6,000 bytes that compress about as text does."""
    import numpy as np

    draw = np.random.default_rng(0)
    words = [bytes(draw.integers(97, 123, draw.integers(2, 10))) for _ in range(5000)]
    rows = []
    for _ in range(500):
        chosen = draw.zipf(1.3, draw.integers(20, 800)) % len(words)
        rows.append(b'{"prompt": "' + b" ".join(words[i] for i in chosen) + b'"}\n')
    once = b"".join(rows)
    # Further apart than gzip's window, the repeats do not help it; zstd's reaches a little further.
    return once * max(1, megabytes * 10**6 // len(once))


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=65_536)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--index-mb", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("data_start.json"))
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start, options.ranks, options.cache)))
        return
    about = report.surroundings(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        starts = measure_starts(Path(name), options.files, options.ranks)
        kinds = measure_kinds(Path(name), options.index_mb)
    report.print_table(starts)
    report.print_table(kinds)
    report.write(options.out, {**about, "start": starts, "index": kinds})


if __name__ == "__main__":
    main()
