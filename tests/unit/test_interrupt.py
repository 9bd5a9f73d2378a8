"""Ctrl-C while a command still imports: exit code 130, without a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Ctrl-C in the middle of an import that comes early, and of one that comes late.
SCRIPT = """
import builtins, runpy, sys
original = builtins.__import__
def interrupted(name, *rest):
    if name == {name!r} or name.endswith({name!r}):
        raise KeyboardInterrupt
    return original(name, *rest)
builtins.__import__ = interrupted
sys.argv = {arguments!r}
runpy.run_path({file!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    "name", ["llada_sft.cluster.launch.launcher", "pydantic", "llada_sft.config"]
)
@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("launch.py", ["launch.py", "--config", "config/demo.yaml", "--local"]),
        ("llada_sft/cli.py", ["llada-sft", "resume", ".", "--local"]),
    ],
)
def test_ctrl_c_during_the_imports(file: str, arguments: list[str], name: str) -> None:
    script = SCRIPT.format(name=name, arguments=arguments, file=str(ROOT / file))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
