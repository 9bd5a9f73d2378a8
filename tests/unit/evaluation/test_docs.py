"""The commands of docs/evaluate.md are commands, and its files and keys are there."""

import re
import shlex
from pathlib import Path

import pytest

from llada_sft import cli
from llada_sft.evaluation.command import plan_of

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/evaluate.md").read_text()
COMMANDS = [
    line
    for line in TEXT.split("```bash\n")[1].split("```")[0].splitlines()
    if "llada-sft eval" in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_asks_for_an_evaluation(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "my_tasks").mkdir()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)
    arguments, rest = cli.parser().parse_known_args(words[1:])
    arguments.overrides += rest
    plan = plan_of(arguments)
    assert plan.tasks
    assert plan.results == tmp_path / "out/model/eval"


def test_all_shipped_files_are_in_the_table() -> None:
    shipped = {f"config/eval/{path.name}" for path in (ROOT / "config/eval").glob("*.yaml")}
    assert set(re.findall(r"^\|.*`(config/eval/\w+\.yaml)`", TEXT, re.MULTILINE)) == shipped


def test_the_python_example_runs(model_dir: Path) -> None:
    code = TEXT.split("```python\n")[1].split("```")[0]
    exec(compile(code.replace("out/model", str(model_dir)), "docs/evaluate.md", "exec"), {})
