"""The site is built without a warning, and a dead link is one."""

import re
import subprocess
import sys
from pathlib import Path

import conf
import pytest

from tests.unit.docs.pages import ROOT

DOCS = ROOT / "docs"


def build(pages: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build a folder of pages with the settings of docs/."""
    options = ["--quiet", "--fail-on-warning", "--keep-going", "-c", str(DOCS)]
    command = [sys.executable, "-m", "sphinx", *options, str(pages), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").exists()
    menu = re.findall(r'<p class="caption".*?>(.*?)</p>', (tmp_path / "index.html").read_text())
    assert [re.sub("<.*?>", "", title) for title in menu][:2] == ["Data", "Plan"]
    assert "micro" in (tmp_path / "searchindex.js").read_text()


@pytest.mark.slow
def test_dead_links_fail_the_build(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (tmp_path / "there.yaml").write_text("a: 1\n")
    (tmp_path / "READ.md").write_text("# Read\n")
    good = "[a](other.md#one) [b](../there.yaml) [c](../READ.md#read) [d](https://example.org)"
    dead = ["nowhere.md", "other.md#two", "../gone.yaml", "../GONE.md"]
    (pages / "index.md").write_text(
        "\n\n".join(["# Index", good, *(f"[x]({target})" for target in dead)])
    )
    (pages / "other.md").write_text("# Other\n\n## One\n")
    done = build(pages, tmp_path / "out")
    assert done.returncode != 0
    lines = re.findall(r"index\.md:(\d+): WARNING", done.stderr)
    # One for each, in the line where it is.
    assert sorted(map(int, lines)) == [5, 7, 9, 11], done.stderr


def test_the_menu_is_that_of_the_start_page() -> None:
    index = "# A\n\n## First\n\n- [x](b.md): it\n- [y](a.md)\n\n## Second\n\n1. [z](c.md)\n"
    shown = conf.menu(index, ["a", "b", "c", "index", "new"])
    found = [re.findall(r"^(?::caption: )?(\w[^:\n]*)$", text, re.MULTILINE) for text in shown]
    assert found == [["First", "x <b>", "y <a>"], ["Second", "z <c>"], ["More", "new"]]
