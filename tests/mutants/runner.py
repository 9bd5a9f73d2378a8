"""Runs the tests of mutants: one copy of the tree for each job, one forked process for each mutant.

The working tree is never changed. This process has imported the large libraries, but nothing of the
package: a forked child imports the package and the tests of its own copy, and starts at once.
"""

import gc
import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from tests.mutants.mutant import Mutant

Outcome = Literal["killed", "SURVIVED", "equivalent", "not applicable"]
# Large, and imported by many tests.
_LIBRARIES = ("torch", "lightning.pytorch", "deepspeed", "transformers", "pydantic")
_NOT_COPIED = (".git", ".venv", "__pycache__", ".*_cache", "runs", "*.egg-info", ".hypothesis")
# A mutant may loop for ever; its tests take seconds.
TIMEOUT_S = 120.0
_POLL_S = 0.02
_TESTS_FAILED = pytest.ExitCode.TESTS_FAILED


@dataclass(frozen=True)
class Result:
    """What became of one mutant.

    Attributes:
        mutant: Which one.
        outcome: Whether a test noticed it.
        detail: The first test that failed, or why the mutant cannot be judged.
    """

    mutant: Mutant
    outcome: Outcome
    detail: str


@dataclass
class _Running:
    """A forked process that runs tests in a copy of the tree."""

    pid: int
    tree: Path
    output: Path
    deadline: float


def import_libraries() -> None:
    """Import what most tests need, once for all children."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    sys.dont_write_bytecode = True
    for name in _LIBRARIES:
        importlib.import_module(name)


def copy_tree(root: Path, target: Path) -> Path:
    """Copy what the tests need of a tree."""
    return Path(shutil.copytree(root, target, ignore=shutil.ignore_patterns(*_NOT_COPIED)))


def check_unchanged(tests: Sequence[str], tree: Path) -> str:
    """Run tests on unchanged code; return their output if they fail, else an empty text."""
    running = _start(tests, tree, TIMEOUT_S * 10)
    code = _wait(running)
    text = running.output.read_text(errors="replace")
    return "" if code == 0 else f"{text}\npytest ended with {code}"


def run(
    mutants: Sequence[Mutant], trees: Sequence[Path], timeout_s: float = TIMEOUT_S
) -> Iterator[Result]:
    """Run the nearest tests of each mutant; yield the results as they come.

    Args:
        mutants: Which ones.
        trees: Copies of the tree, one for each mutant that runs at a time.
        timeout_s: A mutant whose tests take longer counts as killed.
    """
    left, free = list(mutants), list(trees)
    running: dict[int, tuple[Mutant, _Running]] = {}
    while left or running:
        while left and free:
            mutant, tree = left.pop(0), free.pop()
            try:
                _apply(mutant, tree)
            except (OSError, ValueError) as error:
                free.append(tree)
                yield Result(mutant, "not applicable", str(error))
                continue
            started = _start(mutant.test_ids, tree, timeout_s)
            running[started.pid] = mutant, started
        for pid, (mutant, one) in list(running.items()):
            code = _poll(one)
            if code is None:
                continue
            del running[pid]
            result = _judge(mutant, code, one.output)
            _restore(mutant, one.tree)
            free.append(one.tree)
            yield result
        time.sleep(_POLL_S)


def _apply(mutant: Mutant, tree: Path) -> None:
    path = tree / "llada_sft" / mutant.file
    text = path.read_text(encoding="utf-8")
    changed = mutant.applied(text)
    path.with_suffix(".unchanged").write_text(text, encoding="utf-8")
    path.write_text(changed, encoding="utf-8")


def _restore(mutant: Mutant, tree: Path) -> None:
    path = tree / "llada_sft" / mutant.file
    path.with_suffix(".unchanged").replace(path)


def _judge(mutant: Mutant, code: int, output: Path) -> Result:
    if code == -signal.SIGKILL:
        return Result(mutant, "killed", "its tests did not end in time")
    text = output.read_text(errors="replace")
    if code == _TESTS_FAILED:
        return Result(mutant, "killed", _first_failure(text))
    if code != 0:
        last = text.strip().splitlines()[-1:] or ["no output"]
        return Result(mutant, "not applicable", f"pytest ended with {code}: {last[0]}")
    if mutant.equivalent:
        return Result(mutant, "equivalent", mutant.equivalent)
    return Result(mutant, "SURVIVED", mutant.tests)


def _first_failure(text: str) -> str:
    failed = [line for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0].partition(" ")[2] if failed else "a test failed"


def _start(tests: Sequence[str], tree: Path, timeout_s: float) -> _Running:
    output = tree.with_suffix(".log")
    pid = _fork(lambda: _run_tests(tests, tree), output)
    return _Running(pid, tree, output, time.monotonic() + timeout_s)


def _fork(work: Callable[[], int], output: Path) -> int:
    """Do work in a child with a process group of its own, whose exit code is the result."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _in_child(work, output)
    return pid


def _in_child(work: Callable[[], int], output: Path) -> NoReturn:
    code = 99
    # What the parent left to its collector, such as the iterator of a DataLoader, must not be
    # finalized here: it would fail the tests of this child.
    gc.freeze()
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # Whatever stood in their place, as within a test.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_tests(tests: Sequence[str], tree: Path) -> int:
    """Run pytest on another tree than the one that this process was started from."""
    root = str(Path(__file__).parents[2])
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", root))]
    os.environ["PYTHONPATH"] = str(tree)
    # A mutant may be as long as the code, and as old: byte code of one would do for the other.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in list(sys.modules):
        if name.partition(".")[0] in ("tests", "llada_sft"):
            del sys.modules[name]
    options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # Plugins whose modules the libraries have imported.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, f"--rootdir={tree}", *tests]))


def _poll(running: _Running) -> int | None:
    """Return the exit code of a process that has ended; end one that takes too long."""
    pid, status = os.waitpid(running.pid, os.WNOHANG)
    if pid:
        # What its tests have left behind.
        _kill(running.pid)
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() > running.deadline:
        _kill(running.pid)
    return None


def _wait(running: _Running) -> int:
    while (code := _poll(running)) is None:
        time.sleep(_POLL_S)
    return code


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
