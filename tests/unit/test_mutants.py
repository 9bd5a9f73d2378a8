"""The list of mutants fits the code of today; the tool tells a killed mutant from a survivor."""

import gc
import os
from pathlib import Path

import pytest

from tests.mutants import __main__ as command
from tests.mutants.__main__ import MUTANTS, ROOT, main, report
from tests.mutants.mutant import Mutant, problems
from tests.mutants.runner import Result, check_unchanged, copy_tree, run

CODE = """
def add(a, b):
    return a + b


def larger(a, b):
    return a if a > b else b
"""
TESTS = """
from llada_sft.toy import add, larger


def test_add():
    assert add(2, 3) == 5


def test_larger():
    assert larger(2, 3) == 3
"""


def toy(old: str, new: str, tests: str = "test_toy.py", equivalent: str = "") -> Mutant:
    return Mutant("toy.py", old, new, tests, f"{old} -> {new}", equivalent)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of a tree of one module and its tests."""
    root = tmp_path / "root"
    for path, text in {
        "llada_sft/__init__.py": "",
        "llada_sft/toy.py": CODE,
        "tests/unit/test_toy.py": TESTS,
        ".git/config": "",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return copy_tree(root, tmp_path / "copy")


def test_each_text_occurs_exactly_once_and_each_test_is_there() -> None:
    assert problems(MUTANTS, ROOT) == []


def test_there_are_a_hundred_and_no_two_are_the_same() -> None:
    assert len(MUTANTS) >= 100
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert sum(bool(mutant.equivalent) for mutant in MUTANTS) <= len(MUTANTS) * 5 // 100


def test_a_kill_a_survivor_and_an_equivalent_one_are_told_apart(tree: Path) -> None:
    mutants = [
        toy("a + b", "a - b"),
        toy("a > b", "a >= b", equivalent="equal numbers are the same"),
        toy("a > b", "a >= b "),
        toy("a + b", "a * b", "test_toy.py::test_larger"),
        toy("no such text", ""),
        toy("return a + b", "return a +"),
        toy("def add", "def subtract"),
    ]
    results = {one.mutant: one for one in run(mutants, [tree])}
    assert [results[mutant].outcome for mutant in mutants] == [
        "killed",
        "equivalent",
        "SURVIVED",
        "SURVIVED",
        "not applicable",
        "not applicable",
        # The tests cannot even be imported.
        "not applicable",
    ]
    details = [results[mutant].detail for mutant in mutants]
    assert details[0].startswith("tests/unit/test_toy.py::test_add")
    assert details[1] == "equal numbers are the same"
    assert "occurs 0 times, not once" in details[4]
    assert "is not Python" in details[5]
    assert (tree / "llada_sft/toy.py").read_text() == CODE


def test_a_mutant_whose_tests_never_end_is_killed(tree: Path) -> None:
    loop = toy("return a + b", "while True: pass")
    (result,) = run([loop], [tree], timeout_s=1.0)
    assert (result.outcome, result.detail) == ("killed", "its tests did not end in time")


def test_tests_that_fail_without_a_mutant_are_shown(tree: Path) -> None:
    assert check_unchanged(["tests/unit/test_toy.py"], tree) == ""
    (tree / "llada_sft/toy.py").write_text(CODE.replace("a + b", "a - b"))
    assert "test_add" in check_unchanged(["tests/unit/test_toy.py"], tree)
    assert not (tree / ".git").exists()


class _OnlyInItsOwnProcess:
    """Unreachable garbage whose finalizer raises in any other process, as a DataLoader's does."""

    def __init__(self) -> None:
        self.cycle = self
        self.pid = os.getpid()

    def __del__(self) -> None:
        assert self.pid == os.getpid()


def test_garbage_of_the_parent_does_not_fail_the_tests_of_a_child(tree: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        _OnlyInItsOwnProcess()
        assert check_unchanged(["tests/unit/test_toy.py"], tree) == ""
    finally:
        gc.enable()


def test_a_text_that_is_not_in_the_code_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Mutant("data/rows/order.py", "no such text", "", "data/rows/test_order.py", "a")
    twice = Mutant("data/rows/order.py", "import", "", "data/rows/test_gone.py", "b")
    monkeypatch.setattr(command, "MUTANTS", (gone, twice))
    assert main([]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "data/rows/order.py: a: its text occurs 0 times, not once: 'no such text'",
        "data/rows/order.py: b: its text occurs 4 times, not once: 'import'",
        "data/rows/order.py: b: tests/unit/data/rows/test_gone.py: no such test file",
    ]
    assert main(["--only", "nothing of this name"]) == 1


@pytest.mark.parametrize(("killed", "code"), [(100, 0), (95, 0), (94, 1)])
def test_95_of_100_must_be_killed(
    capsys: pytest.CaptureFixture[str], killed: int, code: int
) -> None:
    one = toy("a", "b")
    results = [Result(one, "killed", "")] * killed
    results += [Result(one, "equivalent", "")] * (100 - killed)
    assert report(results) == code
    assert capsys.readouterr().out.startswith(f"{killed} of 100 killed")
