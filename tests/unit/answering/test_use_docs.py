"""The commands and the Python of docs/use.md and of README, run as they stand there."""

import json
import re
import shutil
from pathlib import Path

import pytest

from llada_sft.config import load_config
from llada_sft.config.reader import dump_config
from llada_sft.model.configuration import read_config
from llada_sft.run_dir import RunDir
from tests.doc_commands import call_shell, commands_of
from tests.unit.training.checkpoint_files import write_checkpoint

ROOT = Path(__file__).parents[3]
PYTHON = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/use.md").read_text(), re.DOTALL))


@pytest.fixture
def project(model_dir: Path, tmp_path: Path) -> Path:
    """A folder with a run that has a checkpoint, and a file of prompts."""
    model = shutil.copytree(model_dir, tmp_path / "model")
    # As many positions as the pages' answers need: nothing of the network depends on them.
    text = (model / "config.json").read_text()
    assert '"max_sequence_length": 64' in text
    (model / "config.json").write_text(text.replace('length": 64', 'length": 512'))
    run = RunDir(tmp_path / "runs/mine")
    run.path.mkdir(parents=True)
    overrides = [f"model.path={model}", "model.size=null", "model.init=pretrained"]
    run.config.write_text(dump_config(load_config(ROOT / "config/demo.yaml", overrides)))
    shapes = read_config(model_dir).architecture.parameter_shapes()
    write_checkpoint(run.checkpoints, 2, network=shapes)
    (tmp_path / "prompts.jsonl").write_text('"abc"\n{"prompt": "fe", "response": "ef"}\n')
    return tmp_path


@pytest.mark.slow
def test_commands_and_python_run(project: Path) -> None:
    commands = [*commands_of("docs/use.md"), *commands_of("README.md", "Evaluate and use")]
    # What both have is run once.
    export, *others = dict.fromkeys(command.partition(" #")[0].rstrip() for command in commands)
    assert "exported" in call_shell(export, project)
    assert len(others) == len(commands) - 3
    answers = project / "answers.jsonl"
    for command in others:
        answers.unlink(missing_ok=True)
        printed = call_shell(command, project, stdin="abc\n/quit\n")
        if answers.name in command:
            rows = [json.loads(line) for line in answers.read_text().splitlines()]
            assert [row.get("reference") for row in rows] == [None, "ef"]
        else:
            assert printed
    python = PYTHON.replace('torch.device("cuda")', 'torch.device("cpu")')
    python = python.replace("256", "32").replace("torch.bfloat16", "torch.float32")
    given = "import torch\ninput_ids = torch.tensor([[1, 2]])\nattention_mask = input_ids > 0\n"
    call_shell("python -", project, stdin=f"{given}{python}\nassert len(answers) == 2\n")
