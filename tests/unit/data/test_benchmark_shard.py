"""The benchmark of `llada-sft shard` at a size for every day."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_line_for_each_command(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--mb", "2", "--shards", "3", "--repeat", "2", "--folder", str(tmp_path)]
    subprocess.run(
        [sys.executable, "benchmarks/shard.py", *sizes, "--out", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
    measured = json.loads(out.read_text())
    assert measured["packages"]["numpy"]
    lines = {line["command"]: line for line in measured["lines"]}
    assert list(lines) == ["cp", "shard", "shard --shuffle", "shard --compress zst"]
    assert lines["cp"]["of_cp"] == 100
    # Of no machine's speed.
    assert all(20 < line["peak_mb"] < 150 for name, line in lines.items() if name != "cp")
    assert {name: len(runs) for name, runs in measured["runs"].items()} == dict.fromkeys(lines, 2)
    assert list(tmp_path.iterdir()) == [out]
