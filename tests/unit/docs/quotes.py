"""Which messages the tests quote: their texts are read, not run."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

from message_templates import messages

TESTS = Path(__file__).parents[2]


@cache
def texts_of_tests() -> str:
    """Return all texts that are written in the tests, one in a line."""
    texts = []
    for path in sorted(TESTS.rglob("*.py")):
        if path.parent != Path(__file__).parent:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value.replace("\\", ""))
    return "\n".join(texts)


def is_quoted(template: str) -> bool:
    """Return whether a test has a clause of a message by which one can tell it from all others."""
    clauses = _clauses(template)
    own = [clause for clause in clauses if _num_messages()[clause] < 2]
    return any(clause in texts_of_tests() for clause in own or clauses)


def _clauses(template: str) -> list[str]:
    """Return the parts of two words or more between placeholders, or the longest part."""
    clauses = [
        clause.strip(" '\"")
        for part in re.split(r"\{\w+\}", template)
        for clause in re.split(r"[:;,]\s", part)
    ]
    long = [clause for clause in clauses if len(re.findall(r"[^\W\d_]{2,}", clause)) > 1]
    return long or [max(clauses, key=len)]


@cache
def _num_messages() -> Counter[str]:
    """Return how many messages have each clause."""
    templates = {message.template for message in messages()}
    return Counter(clause for template in templates for clause in {*_clauses(template)})
