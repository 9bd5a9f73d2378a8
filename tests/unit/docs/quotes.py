"""Which messages the tests quote: their texts are read, not run."""

import ast
import re
from functools import cache
from pathlib import Path

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
    """Return whether a test has a clause of a message: two words or more between placeholders."""
    clauses = [
        clause.strip()
        for part in re.split(r"\{\w+\}", template)
        for clause in re.split(r"[:;,]\s", part)
    ]
    long = [clause for clause in clauses if len(re.findall(r"[^\W\d_]{2,}", clause)) > 1]
    return any(clause in texts_of_tests() for clause in long or [max(clauses, key=len)])
