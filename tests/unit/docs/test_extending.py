"""The pages on how to add something, followed to the end in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.docs.pages import ROOT, blocks

PAGES = ("add-member", "add-objective", "add-sampler", "add-format")
FILE = "# llada_sft/"


def copy_of_the_package(folder: Path) -> Path:
    shutil.copytree(ROOT / "llada_sft", folder / "llada_sft")
    for name in ("config", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: list[str], folder: Path, text: str) -> None:
    # A repository above the folder would make git look there.
    own = {"PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        command,
        cwd=folder,
        input=text,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_followed(name: str, tmp_path: Path) -> None:
    """New files are written, changes are made, and then its Python holds."""
    page, folder = ROOT / f"docs/{name}.md", copy_of_the_package(tmp_path)
    python = blocks(page, "python")
    files = [block for block in python if block.startswith(FILE)]
    for block in files:
        path, _, text = block.partition("\n")
        (folder / path.removeprefix("# ")).write_text(text)
    changes = blocks(page, "diff")
    assert changes
    for change in changes:
        run(["git", "apply", "--whitespace=error-all"], folder, change)
    examples = [block for block in python if block not in files]
    assert examples
    run([sys.executable, "-"], folder, "\n".join(examples))
