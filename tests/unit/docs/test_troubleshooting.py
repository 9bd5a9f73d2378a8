"""A test quotes every message, and what docs/troubleshooting.md explains is in the sources."""

import re
from pathlib import Path

import pytest
import write_messages
from message_templates import messages

from tests.unit.docs.quotes import is_quoted

TEXT = (Path(__file__).parents[3] / "docs/troubleshooting.md").read_text(encoding="utf-8")
EXPLAINED = write_messages.explained()
# Of torch, and of SLURM: these messages are not ours.
OF_OTHERS = {"CUDA out of memory", "A rank is killed for its memory"}


def test_every_section_quotes_one_message() -> None:
    titles = re.findall(r"^### (.+)$", TEXT, re.MULTILINE)
    assert len(titles) == len(set(titles)) > 40
    assert set(titles) - set(EXPLAINED.values()) == OF_OTHERS


@pytest.mark.parametrize("template", EXPLAINED, ids=list(EXPLAINED.values()))
def test_the_message_is_in_the_sources_and_in_a_test(template: str) -> None:
    known = {message.template for message in messages()}
    assert template in known, "no such message any more: see docs/messages.md for what it is now"
    assert is_quoted(template), "no test quotes it"


def test_every_message_is_in_a_test() -> None:
    left = [f"{one.file}: {one.template}" for one in messages() if not is_quoted(one.template)]
    assert left == [], "no test quotes these: make each of them happen, and compare its text"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{path}: no *.safetensors files; other formats are not read", True),
        ("{path}: this was written for the present test alone", False),
        ("{a}: {b} xylophone {c}", False),
        # The second clause is that of other messages, too.
        ("{path}: written for the present test alone; remove it", False),
    ],
)
def test_what_counts_as_quoted(template: str, expected: bool) -> None:
    assert is_quoted(template) is expected
