"""Rows as other tools document them: docs/data.md says what becomes of each, and so it is."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.chat_tokens import encode_record
from llada_sft.data.records.formats import RecordRules, format_of
from llada_sft.data.records.normalize import RecordReader
from llada_sft.errors import DataError

ROOT = Path(__file__).parents[4]
TOKENIZER: Any = load_tokenizer(ROOT / "tests/golden/tokenizer_bytes")
TOOLS = ("LLaMA-Factory", "axolotl", "TRL", "ms-swift", "OpenAI")


class Line(NamedTuple):
    """A line of the table."""

    tool: str
    row: dict[str, Any]
    fields: dict[str, str]
    becomes: str


def table() -> list[Line]:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    part = text.partition("### Files of other tools")[2].partition("\n## ")[0]
    lines = re.findall(
        r"^\| ([^|`]+) \| `(\{.*?\})`(?: `data.fields=(.*?)`)? \| (.*) \|$", part, re.M
    )
    return [
        Line(tool, json.loads(row), yaml.safe_load(fields) if fields else {}, becomes)
        for tool, row, fields, becomes in lines
    ]


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def laid_out(turns: str) -> tuple[list[int], list[bool]]:
    """Ids and mask of `system s · user q · assistant **a**`, by hand."""
    *before, (role, answer) = (
        tuple(turn.replace("⏎", "\n").split(" ", 1)) for turn in turns.split(" · ")
    )
    prompt = "<|startoftext|>"
    for of_turn, content in before:
        # What LLaDA's template calls it.
        of_turn = {"developer": "system"}.get(of_turn, of_turn)
        prompt += f"<|start_header_id|>{of_turn}<|end_header_id|>\n\n{content}<|eot_id|>"
    prompt += f"<|start_header_id|>{role}<|end_header_id|>\n\n"
    assert answer.startswith("**") and answer.endswith("**")
    learned = ids_of(answer.strip("*"))
    return ids_of(prompt) + learned, [False] * len(ids_of(prompt)) + [True] * len(learned)


@pytest.mark.parametrize("line", table(), ids=lambda line: line.tool)
def test_a_row_becomes_what_the_docs_say(line: Line) -> None:
    rules = RecordRules(line.fields)
    record_format = format_of(line.row, line.fields)
    reader = RecordReader(record_format or "raw", rules, "last")
    if line.becomes.startswith("`"):
        with pytest.raises(DataError) as caught:
            encode_record(reader(line.row, 0), TOKENIZER)
        assert f"`{caught.value}`" == line.becomes
        return
    learned, _, unread = line.becomes.partition("; not read: ")
    assert reader.unread(line.row) == set(re.findall(r"`(.*?)`", unread))
    encoded = encode_record(reader(line.row, 0), TOKENIZER)
    if record_format == "tokens":
        ids = [(int(token.strip("*")), "*" in token) for token in learned.split()]
        expected = [token for token, _ in ids], [is_learned for _, is_learned in ids]
    elif record_format == "text":
        text = ids_of(learned.strip("*"))
        expected = [TOKENIZER.bos_token_id, *text], [False] + [True] * len(text)
    else:
        expected = laid_out(learned)
    assert (encoded["input_ids"], encoded["response_mask"]) == expected
    assert "loss_weights" not in encoded


def test_the_table_has_every_tool() -> None:
    tools = [line.tool for line in table()]
    assert len(tools) >= 40
    for tool in TOOLS:
        assert sum(name.startswith(tool) for name in tools) >= 4
