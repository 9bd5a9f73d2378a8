"""docs/messages.md: every message that a user may read, by area, from the sources.

    python docs/write.py

`message_templates.py` finds them. The meaning of those that one meets most often is written by hand
in troubleshooting.md: each of its sections quotes a template, and the list here links to it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from message_templates import messages

_HEAD = """\
# Every message

Written by `python docs/write.py`, from the sources: do not edit it. A message says where, what is
wrong, what was found, and what to do; `{name}` stands for what is filled in. Search for a few words
of yours that are neither names nor numbers. What one meets most often is explained in
[Troubleshooting](troubleshooting.md).

A message ends a command with exit code 2, but for findings of `llada-sft check` (exit code 1 for a
problem, 0 for a warning), and lines that begin with `warning`. The message of a row is kept in
`quarantine/`, with its file and line.
"""
# The first that a file's path begins with counts.
_AREAS = (
    ("Configs", ("config/", "plan/", "paths", "cli")),
    ("Rows and records", ("data/records/", "data/rows/bad_row", "data/examples/")),
    ("Shards and files", ("data/",)),
    ("llada-sft shard", ("sharding/",)),
    ("llada-sft check", ("check/",)),
    ("Models and checkpoints", ("model/",)),
    ("Launching", ("cluster/launch/", "cluster/preflight/", "cluster/batch/", "cluster/slurm")),
    ("Resuming", ("cluster/resume/", "cluster/moved", "cluster/door", "training/checkpoint/")),
    ("A job that runs", ("cluster/",)),
    ("Training", ("training/",)),
    ("Answers: sample, chat", ("answering/", "generation/")),
    ("Scores: eval", ("evaluation/",)),
    ("Other", ("",)),
)
# A section of troubleshooting.md: its title, and the template that it explains.
SECTION = re.compile(r"^### (.+)\n\n```\n(.+)\n```\n", re.MULTILINE)


def reference() -> str:
    """Return the text of docs/messages.md."""
    return "\n".join([_HEAD, *_lines()])


def explained() -> dict[str, str]:
    """Return the sections of troubleshooting.md by the template that they explain."""
    text = (Path(__file__).parent / "troubleshooting.md").read_text(encoding="utf-8")
    return {template: title for title, template in SECTION.findall(text)}


def anchor(title: str) -> str:
    """Return the anchor of a heading, as Git hosts make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _lines() -> Iterator[str]:
    by_area: dict[str, set[str]] = {title: set() for title, _ in _AREAS}
    for message in messages():
        area = next(title for title, starts in _AREAS if message.file.startswith(starts))
        by_area[area].add(message.template)
    sections = explained()
    for area, templates in by_area.items():
        if templates:
            yield f"## {area}\n"
            yield from (_item(template, sections.get(template)) for template in sorted(templates))
            yield ""


def _item(template: str, section: str | None) -> str:
    fence = "``" if "`" in template else "`"
    link = "" if section is None else f" ([explained](troubleshooting.md#{anchor(section)}))"
    return f"- {fence}{template}{fence}{link}"
