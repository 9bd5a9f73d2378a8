"""A small project that passes preflight, and stand-ins for SLURM's commands."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIG = """\
run: {name: a}
model: {path: model}
data: {train: shards, hook: hook.py}
slurm: {ranks_per_node: 2, setup: setup.sh}
"""
FakeTool = Callable[[str, str], None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a config, shards, a hook, a setup script and a model; it is the cwd."""
    folder = tmp_path / "project"
    (folder / "shards").mkdir(parents=True)
    for i in range(2):
        (folder / "shards" / f"{i}.jsonl").write_text('{"prompt": "a"}\n' * (3 + i))
    (folder / "hook.py").write_text("def process_data(record, tokenizer, max_length): ...\n")
    (folder / "setup.sh").write_text("export FROM_SETUP=1\n")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"mask_token_id": 7}')
    (folder / "model/model.safetensors").touch()
    (folder / "model/tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 7}]}))
    (folder / "a.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fake_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTool:
    """Put commands on the PATH: `fake_tool(name, body of a shell script)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def add(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return add


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide SLURM's commands, which this machine may have; git and the shell stay."""
    monkeypatch.setattr("shutil.which", lambda name: None)
