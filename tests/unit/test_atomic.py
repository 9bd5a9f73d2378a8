"""Files that are replaced at once: old or new, never half; and synced when that is said."""

import errno
import os
from pathlib import Path

import pytest

from llada_sft import atomic


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with atomic.replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial == tmp_path / "config.yaml.partial"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), atomic.replacing(path) as partial:
        partial.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old"


def test_a_synced_text_is_complete_when_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    atomic.write_synced(tmp_path / "a", "four")
    assert sizes == [4]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_sync_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    atomic.sync(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            atomic.sync(tmp_path)
    else:
        atomic.sync(tmp_path)
