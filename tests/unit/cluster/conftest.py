"""A small project that passes preflight, and stand-ins for SLURM's commands."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import launch
from llada_sft import cli
from llada_sft.model.settings import architecture_of

# The tokenizer is a stub: no row can be tried.
CONFIG = """\
run: {name: a}
model: {path: model}
data: {train: shards, hook: hook.py, try_rows: 0}
slurm: {ranks_per_node: 2, setup: setup.sh}
"""
MODEL = {
    "model_type": "llada",
    "d_model": 4,
    "n_layers": 1,
    "n_heads": 2,
    "mlp_hidden_size": 8,
    "max_sequence_length": 4096,
    "vocab_size": 8,
    "mask_token_id": 7,
    "eos_token_id": 6,
    "rope_theta": 10000.0,
}
FakeTool = Callable[[str, str], None]
Shapes = Mapping[str, tuple[int, ...]]


def write_weights(file: Path, shapes: Shapes, dtype: str = "F32") -> None:
    """Write a safetensors file of zeros, of four bytes each."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def write_project(folder: Path) -> None:
    """Write a config, shards, a hook, a setup script and a model into a folder."""
    (folder / "shards").mkdir()
    for i in range(2):
        (folder / "shards" / f"{i}.jsonl").write_text('{"prompt": "a"}\n' * (3 + i))
    (folder / "hook.py").write_text("def process_data(record, tokenizer, max_length): ...\n")
    (folder / "setup.sh").write_text("export FROM_SETUP=1\n")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps(MODEL))
    write_weights(folder / "model/model.safetensors", architecture_of(MODEL).tensor_shapes())
    (folder / "model/tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 7}]}))
    (folder / "a.yaml").write_text(CONFIG)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that a run can be launched from; it is the cwd."""
    folder = tmp_path / "project"
    folder.mkdir()
    write_project(folder)
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


@pytest.fixture
def call(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call launch.py, or `llada-sft` when the first word is one of its commands."""

    def run(*arguments: str) -> tuple[int, str, str]:
        main = launch.main if arguments[0].startswith("--") else cli.main
        monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
