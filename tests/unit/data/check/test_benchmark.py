"""The benchmark of the check at a size for every day: both count the same tokens."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_the_check_and_the_tokenizer_alone_see_the_same_tokens(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--rows", "80", "--processes", "1", "--repeat", "1", "--out", str(out)]
    subprocess.run(
        [sys.executable, "benchmarks/check.py", *sizes],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
    lines = {line["what"]: line for line in json.loads(out.read_text())["lines"]}
    assert list(lines) == [
        "tokenizer alone, one by one",
        "tokenizer alone, batches of 64",
        "check, padded",
        "check, packed",
    ]
    assert len({line["tokens"] for line in lines.values()}) == 1
    assert all(line["reached"] in ("yes", "NO") for line in list(lines.values())[2:])
