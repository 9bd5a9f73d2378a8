"""The Markdown of the repository: pages, links and anchors, as a Git host has them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md") for path in ROOT.glob(pattern)
)
_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Link:
    """A link of a page to `target`, as it is written."""

    page: Path
    target: str


@cache
def _tokens(page: Path) -> list[Token]:
    return _MARKDOWN.parse(page.read_text(encoding="utf-8"))


def _inline(page: Path) -> Iterator[Token]:
    for token in _tokens(page):
        yield from token.children or []


def links(page: Path) -> list[Link]:
    """Return the links and pictures of a page."""
    found = [token.attrs.get("href") or token.attrs.get("src") for token in _inline(page)]
    return [Link(page, str(target)) for target in found if target]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    tokens, found = _tokens(page), set()
    for opening, inside in pairwise(tokens):
        if opening.type == "heading_open":
            title = "".join(child.content for child in inside.children or [])
            found.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return found


def code_spans(page: Path) -> list[str]:
    """Return what stands between backticks in a page's text."""
    return [token.content for token in _inline(page) if token.type == "code_inline"]


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return [token.content for token in _tokens(page) if token.info == language]


def problem_of(link: Link) -> str | None:
    """Return what is wrong with a link; None if it leads somewhere. The web is not asked."""
    if re.match(r"[a-z]+:", link.target):
        return None if re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", link.target) else "not a URL"
    name, _, anchor = link.target.partition("#")
    target = (link.page.parent / name).resolve() if name else link.page
    if not target.exists():
        return "no such file"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target)):
        return "no such anchor"
    return None
