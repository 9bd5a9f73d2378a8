"""The commands of docs/data.md do what they say, as they stand there."""

import os
import re
from pathlib import Path

import pytest

from llada_sft.data.examples.quarantine import BadRowError, Quarantine
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.row import Row
from llada_sft.demo.data import write_demo
from tests.doc_commands import call_shell, commands_of

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/data.md").read_text()
COMMANDS = commands_of("docs/data.md")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is the repository's root to a command, and takes what it writes.

    The demo's shards are there, and what a run of it set aside.
    """
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("benchmarks", "config", "launch.py", "llada_sft", "slurm", "tests", "utils"):
        (folder / name).symlink_to(ROOT / name)
    write_demo(folder / "demo")
    file, shown = "shard_000.jsonl", "demo/data/train/shard_000.jsonl"
    path = folder / "runs/demo/quarantine/rank_0.jsonl"
    at = {file: FilePosition(0, 0)}
    quarantine = Quarantine(path, 1.0, {file: "9-abcd"}, at, {file: shown})
    quarantine.add(BadRowError(Row(file, 2, 44, b"", shown), "not_json", "not JSON: x"), 0, 0)
    return folder


def test_every_command_is_run() -> None:
    assert len(COMMANDS) > 5
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S))
    # `llada-sft sample` alone is a name.
    assert [code for code in inline if re.match(r"(python|llada-sft \w+) ", code)] == [
        # Of a run that there is not.
        "llada-sft resume RUN data.on_changed_file=restart_file"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(checkout: Path, command: str) -> None:
    printed = call_shell(command, checkout, os.environ | {"TMPDIR": str(checkout)})
    assert printed or "# writes " in command
    for expected in _expected(command):
        assert expected in printed


def _expected(command: str) -> list[str]:
    if "--print-config" in command:
        one_half = "shard_00[12]" in command
        if "weight" in command:
            return [
                "a                18,488 rows × 3 epochs",
                "b                18,488 rows × 3 epochs",
            ]
        packed = "batching=packed" in command
        return [
            f"rows per epoch   {18_488 if one_half else 36_976:,}",
            "at most 2,048 tokens" if packed else "steps per epoch",
        ]
    if "many_cases" in command:
        return ["40 cases", "every row once per epoch, no hang"]
    if "uniq" in command:
        return ['1 "reason": "not_json"\n']
    return []
