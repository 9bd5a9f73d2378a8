"""The rooms of the package: none is crowded, and the docstring of each names what is in it."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llada_sft"
ROOMS = sorted(file.parent for file in PACKAGE.rglob("__init__.py"))
MOST_FILES = 14


def named(room: Path) -> set[str]:
    """Return the files and folders that the room's docstring names."""
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    return set(re.findall(r"\b\w+(?:\.py\b|/)", docstring))


def entries(room: Path) -> set[str]:
    files = {file.name for file in room.glob("*.py")} - {"__init__.py"}
    return files | {f"{file.parent.name}/" for file in room.glob("*/__init__.py")}


def room_name(room: Path) -> str:
    return str(room.relative_to(PACKAGE.parent))


@pytest.mark.parametrize("room", ROOMS, ids=room_name)
def test_a_room_has_few_files(room: Path) -> None:
    assert len(list(room.glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("room", ROOMS, ids=room_name)
def test_the_map_of_a_room_names_each_file(room: Path) -> None:
    assert entries(room) - named(room) == set()


@pytest.mark.parametrize("room", ROOMS, ids=room_name)
def test_the_map_of_a_room_names_nothing_else(room: Path) -> None:
    """Files that a docstring speaks of and that are not here are those of another room."""
    somewhere = {file.name for file in PACKAGE.rglob("*.py")}
    assert not (named(room) & somewhere) - entries(room)


# Entry points of modules that run as programs.
PROGRAMS = {"main", "parser"}
# Verbs that are only ever called with the name of their module before them: `journal.read`.
VERBS = {"create", "find", "lines", "read", "read_all"}
VERBS |= {"require", "run"}
# Public names of two rooms: of the official sampler, and of all samplers.
PUBLIC = {"generate"}


def definitions() -> dict[str, list[str]]:
    """Return the modules that define each public class or function, by its name."""
    modules = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                modules[node.name].append(str(file.relative_to(PACKAGE.parent)))
    return modules


def test_no_name_stands_for_two_things() -> None:
    twice = {name: files for name, files in definitions().items() if len(files) > 1}
    assert {
        name: files for name, files in twice.items() if name not in PROGRAMS | VERBS | PUBLIC
    } == {}
    # An exception that is none any more is removed from the list.
    assert twice.keys() >= PROGRAMS | VERBS | PUBLIC


def test_verbs_are_called_with_the_name_of_their_module() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llada_sft"):
                assert not {alias.name for alias in node.names} & VERBS, (file, node.lineno)
