"""A folder to launch the demo from, and the commands of the documentation."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from llada_sft.demo.data import write_demo

ROOT = Path(__file__).parents[2]


def new_project(folder: Path) -> Path:
    """Make a folder to launch from: what a checkout has, and the demo's data."""
    for name in ("launch.py", "config", "slurm", "utils"):
        (folder / name).symlink_to(ROOT / name)
    write_demo(folder / "demo")
    return folder


def add_own_config(folder: Path, project: Path, max_steps: int) -> None:
    """Make a folder with config/mine.yaml, as the documentation calls it: the demo, one rank."""
    for name in ("launch.py", "slurm", "utils", "demo"):
        (folder / name).symlink_to(project / name)
    (folder / "config").mkdir()
    text = (ROOT / "config/demo.yaml").read_text()
    for old, new in (
        ("max_steps: 400", f"max_steps: {max_steps}"),
        ("  ranks_per_node: 2", "  ranks_per_node: 1"),
        ("  max_length: 64", "  max_length: 64\n  prefetch_steps: 0"),
        ("  every_n_steps: 10", "  every_n_steps: 1"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "config/mine.yaml").write_text(text)


def commands_of(page: str) -> list[list[str]]:
    """Return the lines of each block of bash of a page in docs/."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in blocks]


def call_shell(command: str, folder: Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """Run a command as a user types it, with the tools of this Python; return what it printed."""
    tools = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**environment, "PATH": tools, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
