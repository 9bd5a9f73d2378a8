"""A mutant: one small, wrong change of one file, and the tests that must notice it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A change that some test must notice.

    Attributes:
        file: The changed file, relative to `llada_sft/`.
        old: The text to replace; it occurs exactly once in the file.
        new: What replaces it.
        tests: The nearest tests, relative to `tests/unit/`: files or pytest node ids, separated by
            spaces.
        breaks: What is wrong then, in one line.
        equivalent: Why no test can notice it; empty where one must.
    """

    file: str
    old: str
    new: str
    tests: str
    breaks: str
    equivalent: str = ""

    @property
    def name(self) -> str:
        """What `--only` is compared with, and what tables show."""
        return f"{self.file}: {self.breaks}"

    @property
    def test_ids(self) -> list[str]:
        """The tests as pytest wants them, relative to the tree."""
        return [f"tests/unit/{one}" for one in self.tests.split()]

    def applied(self, text: str) -> str:
        """Return the file's text with the change.

        Raises:
            ValueError: The text to replace does not occur exactly once, or the result is not
                Python.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its text occurs {count} times, not once: {self.old!r}")
        changed = text.replace(self.old, self.new)
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.name}: the changed file is not Python: {error}") from None
        return changed


def of_file(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutant]:
    """Return mutants of one file with the same nearest tests.

    Args:
        file: As in `Mutant`.
        tests: As in `Mutant`.
        changes: Text to replace, its replacement, and what it breaks.
    """
    return [Mutant(file, old, new, tests, breaks) for old, new, breaks in changes]


def problems(mutants: Iterable[Mutant], root: Path) -> list[str]:
    """Return what is wrong with the list itself: text that is not in the code, missing tests."""
    found = []
    for mutant in mutants:
        try:
            mutant.applied((root / "llada_sft" / mutant.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found.append(str(error))
        found += [
            f"{mutant.name}: {test}: no such test file"
            for test in mutant.test_ids
            if not (root / test.partition("::")[0]).is_file()
        ]
    return found


def chosen(mutants: Sequence[Mutant], pattern: str) -> list[Mutant]:
    """Return the mutants whose name contains a text."""
    return [mutant for mutant in mutants if pattern in mutant.name]
