"""Every link of the repository's Markdown leads to a file and an anchor that are there."""

from pathlib import Path

import pytest

from tests.unit.docs.pages import PAGES, ROOT, Link, links, problem_of


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    problems = {link.target: problem_of(link) for link in links(page)}
    assert {target: problem for target, problem in problems.items() if problem} == {}


def test_links_are_found() -> None:
    found = {link.target for link in links(ROOT / "docs/index.md")}
    assert {"data.md", "../README.md"} <= found
    assert len(PAGES) > 20


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("data.md", None),
        ("data.md#records", None),
        ("#llada_sft", None),
        ("../config/zero3.yaml", None),
        ("https://docs.python.org/3/", None),
        ("nowhere.md", "no such file"),
        ("data.md#nowhere", "no such anchor"),
        ("#nowhere", "no such anchor"),
        ("../config/nothing.yaml", "no such file"),
        ("https:/docs.python.org", "not a URL"),
        ("htps://docs.python.org", "not a URL"),
    ],
)
def test_what_is_a_dead_link(target: str, problem: str | None) -> None:
    assert problem_of(Link(ROOT / "docs/index.md", target)) == problem


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page: Path) -> None:
    """But in tables, in code, and in lists that are written by the code."""
    long, in_code = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        in_code ^= line.startswith("```")
        if len(line) > 120 and not in_code and not line.lstrip().startswith(("|", "- `")):
            long.append(line)
    assert long == []
