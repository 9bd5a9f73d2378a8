"""What the pages name is there: files of the repository, keys of a config, options of commands."""

import re
import shlex
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

import pytest
import write_commands
from pydantic import BaseModel

from llada_sft.config.schema import Config
from tests.unit.docs.pages import PAGES, ROOT, blocks, code_spans

FOLDERS = ("llada_sft", "tests", "docs", "config", "slurm", "benchmarks", "utils")
# Of a user's own, in examples; and of a run directory, which has a slurm/, too.
EXAMPLES = re.compile(r"config/(mine|a)\.yaml|.*[*{…].*|.*\bNAME\b.*|slurm/JOB_.*")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_files_are_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    paths = (
        span.partition("::")[0]
        for span in code_spans(page)
        if re.match(rf"({'|'.join(FOLDERS)})/\S+$", span) and not EXAMPLES.fullmatch(span)
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


@each_page
def test_what_is_run_is_there(page: Path) -> None:
    """Files of the repository and targets of make in the commands of a page."""
    shell = "\n".join(blocks(page, "bash"))
    paths = re.findall(r"(?<![\w/.])(?:tests|docs|benchmarks|\.ci)/[\w./-]+", shell)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    spans = [span for span in code_spans(page) if span.startswith("make ")]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = re.findall(r"^make ([\w-]+)", "\n".join([shell, *spans]), re.MULTILINE)
    assert set(wanted) <= targets


@cache
def keys() -> set[str]:
    """Return `section.key` of every key."""
    found = set()
    for section, field in Config.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= {f"{section}.{key}" for key in kind.model_fields}
    return found


# Of the same form: files, keys of `check --json` and of config/eval/, a module of DeepSpeed.
NOT_KEYS = re.compile(
    r"\w+\.(py|md|sh|yaml|sbatch)|train\.duplicates|validation\.in_train|slurm\.max_failures"
    r"|deepspeed\.moe"
)


@each_page
def test_keys_are_keys(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    sections = "|".join(Config.model_fields)
    named = {
        found[1]
        for span in code_spans(page)
        if (found := re.match(rf"((?:{sections})\.\w+)(?![\w*./(])", span))
        and not NOT_KEYS.fullmatch(found[1])
    }
    assert named - keys() == set()


def commands(page: Path) -> list[list[str]]:
    """Return the commands of ours in a page, each as its words."""
    lines = [
        line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    spans = [span for span in code_spans(page) if re.match(r"llada-sft \w+ \S|launch\.py ", span)]
    found = []
    for text in lines + spans:
        command = re.search(r"(llada-sft \w+|launch\.py) .*", text)
        if command and not text.lstrip().startswith("#"):
            words = shlex.split(command[0].partition("|")[0].partition("&&")[0], comments=True)
            found.append(words)
    return found


@cache
def parsers() -> dict[str, ArgumentParser]:
    return {parser.prog.removeprefix("python "): parser for parser in write_commands.parsers()}


@each_page
def test_options_are_options(page: Path) -> None:
    unknown = []
    for words in commands(page):
        name = words[0] if words[0] == "launch.py" else " ".join(words[:2])
        options = parsers()[name]._option_string_actions
        given = (word.partition("=")[0] for word in words if word.startswith("--"))
        unknown += [f"{name} {option}" for option in given if option not in options]
    assert unknown == []


def test_commands_are_found() -> None:
    found = commands(ROOT / "docs/check.md")
    assert ["llada-sft", "check", "config/mine.yaml", "--ranks", "64"] in found
    assert all(commands(ROOT / name) for name in ("README.md", "docs/use.md", "docs/lora.md"))
