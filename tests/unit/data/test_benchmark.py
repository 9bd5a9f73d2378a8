"""The benchmark of the data plane at a size for every day: a line for each target."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_line_for_each_target(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--rows", "160", "--memory-rows", "100000", "--out", str(out)]
    subprocess.run(
        [sys.executable, "benchmarks/data.py", *sizes],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
    measured = json.loads(out.read_text())
    assert measured["packages"]["orjson"]
    lines = {line["what"]: line for line in measured["lines"]}
    assert 1800 < lines["mean row"]["value"] < 2600
    targets = {line["what"].split(",")[0] for line in lines.values() if line["target"] != ""}
    expected = {"parse", "tokenized and packed over one by one", "memory", "resume", "fill"}
    assert targets == expected
    # Of no machine's speed.
    assert lines["memory, 0.1 M rows, second start"]["value"] < 100
    assert all(lines[f"fill, max_tokens {n}"]["reached"] == "yes" for n in (4096, 8192, 16384))
