"""A rank of many, on a folder of many shards: the benchmark at a size for every day."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_many_shards_and_ranks(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--files", "4096", "--ranks", "256", "--index-mb", "4", "--out", str(out)]
    subprocess.run(
        [sys.executable, "benchmarks/data_start.py", *sizes],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    measured = json.loads(out.read_text())
    first, second = measured["start"]
    assert (first["shards"], first["own_shards"]) == (4096, 16)
    # Times are for the benchmark's table; memory is the same on a loaded machine.
    assert max(first["peak_mb"], second["peak_mb"]) < 200
    assert [kind["kind"] for kind in measured["index"]] == [".jsonl", ".jsonl.gz", ".jsonl.zst"]
    assert len({kind["rows"] for kind in measured["index"]}) == 1
