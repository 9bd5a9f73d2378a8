"""How docs/*.md become a site: `make docs` builds it into build/docs.

Sphinx with MyST and Furo: it turns every dead link between pages, to an anchor or to a file into an
error, and it is old and kept, where Zensical, which succeeds mkdocs-material, is at version 0.1.

The pages stay plain Markdown. The menu is made of the links of index.md, section by section; pages
that it does not name come last.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "llada_sft"
html_title = project
extensions = ["myst_parser"]
# Anchors of headings, made as Git hosts make them.
myst_heading_anchors = 4
# `https://…` is a link; every other one is a page, an anchor or a file that must be there.
myst_url_schemes = ["http", "https", "mailto"]
# Options and quotes are shown as one types them; code without a language is not Python.
smartquotes = False
highlight_language = "text"
html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

# A page outside of docs/ is no page of the site: its file is.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[\w./-]+\.md)(?:#[\w-]+)?\)")
# A link at the start of a list's item: its text, its page.
_LINK = re.compile(r"^[-*\d.]+ \[([^\]]+)\]\((\w[\w-]*)\.md\)", re.MULTILINE)


def setup(app: Sphinx) -> None:
    """Prepare each page when it is read."""
    app.connect("source-read", _prepare)


def _prepare(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = _OUTSIDE.sub(r"{download}`\1 <\2>`", source[0])
    if page == "index":
        there = [path.stem for path in sorted(Path(app.srcdir).glob("*.md"))]
        source[0] += "".join(menu(source[0], there))


def menu(index: str, there: list[str]) -> list[str]:
    """Return hidden tables of contents: one for each section of index.md, and one of the rest.

    Args:
        index: The text of index.md.
        there: The names of all pages.
    """
    sections = [part.partition("\n") for part in index.split("\n## ")[1:]]
    groups = [(title, _LINK.findall(text)) for title, _, text in sections]
    listed = {"index", *(page for _, links in groups for _, page in links)}
    lines = {title: [f"{text} <{page}>" for text, page in links] for title, links in groups}
    lines["More"] = [page for page in there if page not in listed]
    return [
        "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *entries, "```", ""])
        for title, entries in lines.items()
        if entries
    ]
