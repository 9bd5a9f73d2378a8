"""A folder to launch the demo from."""

from pathlib import Path

from llada_sft.demo.data import write_demo

ROOT = Path(__file__).parents[2]


def new_project(folder: Path) -> Path:
    """Make a folder to launch from: what a checkout has, and the demo's data."""
    for name in ("launch.py", "config", "slurm", "utils"):
        (folder / name).symlink_to(ROOT / name)
    write_demo(folder / "demo")
    return folder
