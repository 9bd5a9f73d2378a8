"""Places where a run directory cannot be made: one line each, before anything is written."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.cluster.preflight.place import place_problems
from llada_sft.run_dir import RunDir

ADVICE = "set run.root to a folder that can be written to"


def problems(path: Path) -> list[str]:
    return list(place_problems(RunDir(path)))


def test_good_places(tmp_path: Path) -> None:
    assert problems(tmp_path / "not/there/yet/a") == []
    # An empty folder is replaced; a run is taken up.
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("empty", "run", "link", "link/a", "."):
        assert problems(tmp_path / name if name != "." else tmp_path / "run") == []


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert problems(tmp_path / "file/a") == [f"run.root: {tmp_path}/file: not a folder; {ADVICE}"]
    assert problems(tmp_path / "file/b/a") == [f"run.root: {tmp_path}/file: not a folder; {ADVICE}"]
    assert problems(Path("/dev/null/a")) == [f"run.root: /dev/null: not a folder; {ADVICE}"]
    assert problems(tmp_path / "file") == [
        f"{tmp_path}/file: exists and is not a run directory: choose another run.name"
    ]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    assert problems(tmp_path / "other") == [
        f"{tmp_path}/other: exists and is not a run directory: choose another run.name"
    ]


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    nowhere, circle = tmp_path / "nowhere", tmp_path / "circle"
    for path in (nowhere, nowhere / "a"):
        assert problems(path) == [
            f"run.root: {nowhere}: a link to something that does not exist; {ADVICE}"
        ]
    (line,) = problems(circle / "a")
    assert "Too many levels of symbolic links" in line


def test_names_that_are_too_long(tmp_path: Path) -> None:
    (line,) = problems(tmp_path / ("x" * 256) / "a")
    assert line == f"run.root: {'x' * 100}...: longer than 255 bytes; {ADVICE}"
    # In bytes, not in characters.
    (line,) = problems(tmp_path / "there/is/none" / ("é" * 128) / "a")
    assert line.endswith(f"longer than 255 bytes; {ADVICE}")
    assert problems(tmp_path / ("é" * 127) / "a") == []
    (line,) = problems(tmp_path.joinpath(*["x" * 100] * 40) / "a")
    assert line.endswith(f"...: longer than 3840 bytes; {ADVICE}")


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    """Asked as another user: root may write anywhere."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o555)
    check = f"""
import os, sys
from llada_sft.cluster.preflight.place import place_problems
from llada_sft.run_dir import RunDir
from pathlib import Path
os.setuid(65534) if os.getuid() == 0 else None
print(*place_problems(RunDir(Path({str(folder / "a")!r}))), sep="\\n")
"""
    for above in itertools.takewhile(lambda one: one.owner() == folder.owner(), folder.parents):
        if above.stat().st_mode & 0o777 == 0o700:
            above.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"run.root: {folder}: cannot be written to: Permission denied; {ADVICE}\n"
    )


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: ReadOnly)
    assert problems(tmp_path / "a") == [
        f"run.root: {tmp_path}: cannot be written to: Read-only file system; {ADVICE}"
    ]
