"""The commands of docs/check.md, as they stand there, on shards for 64 ranks."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llada_sft.check import command as check_command
from llada_sft.check.reading import BuildWorker
from llada_sft.cli import main
from llada_sft.demo.data import make_tokenizer
from tests.doc_commands import ROOT, commands_of
from tests.unit.check.test_survey import Here

CONFIG = """\
run: {name: mine}
model:
  path: tokenizer
  init: random
  size: {d_model: 16, n_layers: 1, n_heads: 2, mlp_hidden_size: 24, max_sequence_length: 2048}
data: {train: train, max_length: 64}
train: {micro_batch_size: 1, precision: fp32, accelerator: cpu}
slurm: {ranks_per_node: 2}
"""
NUM_SHARDS, ROWS = 64, 3


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/mine.yaml").write_text(CONFIG)
    (tmp_path / "train").mkdir()
    for shard in range(NUM_SHARDS):
        rows = [{"prompt": f"reverse {shard}", "response": "abc"[row:]} for row in range(ROWS)]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / f"train/shard_{shard:02}.jsonl").write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def rows_are_read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def here(build: BuildWorker, num_processes: int) -> Iterator[Here]:
        yield Here(build())

    monkeypatch.setattr(check_command, "Workers", here)
    # The command sets it.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def test_the_commands_of_the_page(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    printed = []
    for command in commands_of("docs/check.md"):
        monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
        assert main() == 0
        printed.append(capsys.readouterr().out)
    whole, many_ranks, sample, as_json = printed
    assert f"{NUM_SHARDS} shards" in whole
    assert "64 ranks" in many_ranks and "64 ranks" not in whole
    assert sample == whole
    found = json.loads(as_json)
    assert found["ok"]
    assert (found["ranks"], found["train"]["rows"]) == (2, NUM_SHARDS * ROWS)
