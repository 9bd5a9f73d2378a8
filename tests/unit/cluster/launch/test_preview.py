"""What only looks at a launch: it imports little, and writes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

IMPORTED = """
import sys
from llada_sft.cluster.launch.command import main
sys.argv = ["launch.py", "--config", "a.yaml", *sys.argv[1:]]
assert main() == 0
heavy = {"torch", "submitit", "asyncio", "subprocess", "multiprocessing"}
heavy |= {f"llada_sft.cluster.{room}" for room in ("launch.launcher", "owner", "resume", "watch")}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.parametrize("mode", ["--dry-run", "--print-config"])
def test_it_imports_nothing_of_a_submission_and_writes_nothing(project: Path, mode: str) -> None:
    before = sorted(project.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, mode],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("[]\n", 0)
    assert sorted(project.rglob("*")) == before
