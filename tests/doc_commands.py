"""The commands of the documentation, which are the contract of a page with its tests.

A block of bash is run as it stands there by a test, which takes it with `commands_of`. Where none
can, a comment before the block says why:

    <!-- not run: needs a GPU -->

tests/unit/docs/test_commands.py fails for a command that is neither run nor marked.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
LANGUAGES = ("bash", "sh", "shell", "console")
# Of these pages alone: the others are lists that are made from the code, and notes.
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
_MARK = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
_MARKDOWN = MarkdownIt("commonmark")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: Its path in the repository.
        section: The heading above it.
        text: As it stands there, with what follows a backslash at the end of a line.
        reason: Why no test runs it; None if one must.
    """

    page: str
    section: str
    text: str
    reason: str | None


@dataclass(frozen=True)
class Taken:
    """What a test runs: the commands of a page, or of a section of it."""

    page: str
    section: str | None
    test: str


@cache
def commands_in(page: str) -> tuple[Command, ...]:
    """Return all commands of a page."""
    return tuple(read_commands(page, (ROOT / page).read_text(encoding="utf-8")))


def read_commands(page: str, text: str) -> Iterator[Command]:
    """Give the commands of a page's text.

    Raises:
        ValueError: A mark is not directly before a block of bash.
    """
    section, reason = "", None
    tokens = _MARKDOWN.parse(text)
    for before, token in zip([None, *tokens], tokens, strict=False):
        is_shell = token.type == "fence" and token.info.partition(" ")[0] in LANGUAGES
        if reason is not None and not is_shell:
            raise ValueError(f"{page}: 'not run: {reason}' is not before a block of bash")
        if before is not None and before.type == "heading_open":
            section = token.content
        if is_shell:
            for command in _split(token.content):
                yield Command(page, section, command, reason)
        mark = _MARK.fullmatch(token.content.strip()) if token.type == "html_block" else None
        reason = " ".join(mark[1].split()) if mark else None


def commands_of(page: str, section: str | None = None) -> list[str]:
    """Return the commands that a test must run, as they stand in a page or in a section of it.

    Tests name both in the call, as texts: which commands are run is read from their sources.

    Raises:
        ValueError: There are none.
    """
    found = [
        command.text
        for command in commands_in(page)
        if command.reason is None and section in (None, command.section)
    ]
    if not found:
        raise ValueError(f"{page}: no command to run in {section or 'it'}")
    return found


def environment_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which commands are those of this Python and of this checkout."""
    tools = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return {**environment, "PATH": tools, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call_shell(
    command: str,
    folder: Path,
    environment: Mapping[str, str] = os.environ,
    timeout_s: float = 200,
    stdin: str = "",
) -> str:
    """Run a command as a user types it; return what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment_of(environment),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@cache
def taken() -> frozenset[Taken]:
    """Return what the calls of `commands_of` in the tests name, but in the tests of these."""
    return frozenset(
        Taken(*_names(node), test=str(path.relative_to(ROOT)))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path.parent != ROOT / "tests/unit/docs"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "commands_of"
    )


def _names(call: ast.Call) -> tuple[str, str | None]:
    """Return the page and the section that a call names."""
    page, section = (*map(ast.literal_eval, call.args), None)[:2]
    return page, section


def _split(block: str) -> Iterator[str]:
    """Give the commands of a block, without empty lines and lines of comment."""
    for line in re.findall(r"(?:.*\\\n)*.*\n", block):
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.rstrip("\n")
