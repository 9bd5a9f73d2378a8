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
