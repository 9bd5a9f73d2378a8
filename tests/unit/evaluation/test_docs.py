"""The commands of docs/evaluate.md are commands, and its files and keys are there."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from llada_sft import cli
from llada_sft.evaluation.command import plan_of
from tests.doc_commands import commands_in, commands_of
from tests.unit.evaluation.project import CHOICE

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/evaluate.md").read_text()
COMMANDS = [
    command.text
    for command in commands_in("docs/evaluate.md")
    if command.text.startswith("llada-sft eval")
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


@pytest.mark.filterwarnings("ignore")
def test_own_tasks_are_scored(
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "my_tasks").mkdir()
    data = tmp_path / "my_tasks/words.jsonl"
    data.write_text(json.dumps({"word": "ab", "choices": ["ba", "ab"]}) + "\n")
    task = CHOICE.format(data=data).replace("task: choose", "task: mine")
    (tmp_path / "my_tasks/mine.yaml").write_text(task)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model").symlink_to(model_dir)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (command,) = commands_of("docs/evaluate.md")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    assert cli.main() == 0
    assert "mine" in capsys.readouterr().out
    assert len(list((tmp_path / "out/model/eval").glob("mine_*/results.json"))) == 1


def test_all_shipped_files_are_in_the_table() -> None:
    shipped = {f"config/eval/{path.name}" for path in (ROOT / "config/eval").glob("*.yaml")}
    assert set(re.findall(r"^\|.*`(config/eval/\w+\.yaml)`", TEXT, re.MULTILINE)) == shipped


def test_the_python_example_runs(model_dir: Path) -> None:
    code = TEXT.split("```python\n")[1].split("```")[0]
    exec(compile(code.replace("out/model", str(model_dir)), "docs/evaluate.md", "exec"), {})
