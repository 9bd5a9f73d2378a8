"""What was gathered -> one HTML page that needs nothing else.

Everything from a run reaches the page as JSON in one element. The page's scripts make text nodes of
it, never HTML; and its policy allows no script and no style but those that are written here, each
by its hash, and no connection, except to its own server.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from llada_sft.report.gather import gather
from llada_sft.report.limits import FEWEST_POINTS, Limits
from llada_sft.run_dir import RunDir

MAX_BYTES = 3_000_000
# In the order in which they need each other.
SCRIPTS = (
    "uplot/uPlot.iife.min.js",
    "dom.js",
    "state.js",
    "charts.js",
    "curves.js",
    "health.js",
    "timeline.js",
    "answers.js",
    "config.js",
    "main.js",
)
STYLES = ("uplot/uPlot.min.css", "page.css", "parts.css")
_PAGE = files(__package__) / "page"
_PLACE = re.compile(r"\{\{(\w+)\}\}")
# None of these may end the element, or be a newline that older JavaScript does not allow.
_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def page_of(runs: Sequence[RunDir], live: bool = False) -> str:
    """Return the page of some runs, below `MAX_BYTES` bytes.

    Args:
        runs: At least one.
        live: Whether it is served, and asks its server for newer data.
    """
    return _document(data_of(runs, live), live)


def data_of(runs: Sequence[RunDir], live: bool) -> str:
    """Return the data of the page as JSON that is safe inside of HTML; all of it is ASCII."""
    room = MAX_BYTES - len(_document("", live).encode())
    limits = Limits()
    data = _as_json(gather(runs, limits, live))
    while len(data) >= room and limits.points > FEWEST_POINTS:
        limits = limits.halved()
        data = _as_json(gather(runs, limits, live))
    return data


def policy(live: bool) -> str:
    """Return the page's Content-Security-Policy."""
    scripts = " ".join(_hash(_read(name)) for name in SCRIPTS)
    styles = " ".join(_hash(_read(name)) for name in STYLES)
    connections = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:;"
        f" base-uri 'none'; form-action 'none'{connections}"
    )


def _document(data: str, live: bool) -> str:
    parts = {
        "policy": policy(live),
        "styles": "\n".join(f"<style>{_read(name)}</style>" for name in STYLES),
        "scripts": "\n".join(f"<script>{_read(name)}</script>" for name in SCRIPTS),
        "licence": _read("uplot/LICENSE"),
        "data": data,
    }
    # All at once: what one part has in braces is not a place for another.
    return _PLACE.sub(lambda place: parts[place[1]], _read("page.html"))


def _as_json(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPED)


def _read(name: str) -> str:
    return _PAGE.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
