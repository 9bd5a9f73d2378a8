"""Compares two copies of a run's code: changed files with line counts, and the hook's diff."""

import difflib
from pathlib import Path
from typing import NamedTuple

from llada_sft.run_dir import RunDir


class FileChange(NamedTuple):
    """A file that differs, and how many lines were added and removed."""

    name: str
    what: str
    added: int
    removed: int

    def __str__(self) -> str:
        return f"{self.what:<8} {self.name} (+{self.added} -{self.removed} lines)"


def compare(old: RunDir, new: RunDir) -> list[FileChange]:
    """List the files of `code/` that differ: the package, the hook and setup.sh."""
    before, after = _files(old), _files(new)
    changes = []
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if a != b:
            what = "added" if a is None else "removed" if b is None else "changed"
            changes.append(FileChange(name, what, *_count(a or b"", b or b"")))
    return changes


def hook_diff(old: RunDir, new: RunDir) -> str:
    """Return the unified diff of the hook; empty if there is no difference."""
    a, b = (_read(run.hook).decode(errors="replace").splitlines() for run in (old, new))
    name = old.hook.name
    return "\n".join(difflib.unified_diff(a, b, f"{name} (before)", f"{name} (now)", lineterm=""))


def _files(run: RunDir) -> dict[str, bytes]:
    """Read the Python and shell files that ranks run; not bytecode, not the recorded git state."""
    paths = [path for path in run.code.rglob("*") if path.suffix in (".py", ".sh")]
    return {str(path.relative_to(run.code)): _read(path) for path in paths if path.is_file()}


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _count(old: bytes, new: bytes) -> tuple[int, int]:
    """Count the lines that were added and removed."""
    a, b = old.splitlines(), new.splitlines()
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    same = sum(block.size for block in blocks)
    return len(b) - same, len(a) - same
