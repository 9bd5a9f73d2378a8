"""The scripts of slurm/: what they ask SLURM for, and how they answer without arguments."""

import re
import subprocess
from pathlib import Path

import pytest

from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.config import load_config
from llada_sft.run_dir import RunDir

ROOT = Path(__file__).parents[4]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
# Options that belong to what a script does, and not to how our jobs survive.
OF_A_SCRIPT = {"job-name", "output", "time", "nodes", "ntasks", "exclusive", "mem"}
# A job that is looked at, and one that is over in minutes.
NEVER_AGAIN = {"debug.sbatch", "export.sbatch"}


def directives(text: str) -> dict[str, str]:
    """Return the options of the `#SBATCH` lines, by their names."""
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE)
    return dict(lines)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_a_script_shares_with_the_launcher_is_the_same(script: Path) -> None:
    config = load_config(ROOT / "config/zero3.yaml")
    of_launcher = directives(sbatch_text(config, RunDir(Path("/runs/a"))))
    own = {k: v for k, v in directives(script.read_text()).items() if k not in OF_A_SCRIPT}
    if script.name in NEVER_AGAIN:
        assert "no-requeue" in own
        del own["no-requeue"]
    assert own
    assert own == {name: of_launcher[name] for name in own}


def test_train_asks_for_all_that_a_job_needs_to_survive() -> None:
    text = (ROOT / "slurm/train.sbatch").read_text()
    assert {"requeue", "signal", "open-mode"} <= directives(text).keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_head_of_a_script_says_how_to_submit_it(script: Path) -> None:
    head = script.read_text().partition("#SBATCH")[0]
    assert re.search(rf"^#   sbatch .*slurm/{script.name} ", head, re.MULTILINE)


@pytest.mark.parametrize("name", ["debug", "eval", "export"])
def test_a_script_without_arguments_says_how_it_is_called(name: str) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / f"slurm/{name}.sbatch")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: sbatch slurm/{name}.sbatch ")
