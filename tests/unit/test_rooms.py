"""The rooms of the package: none is crowded, and the docstring of each names what is in it."""

import ast
import re
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
