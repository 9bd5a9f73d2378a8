"""The numbered files: one claimant gets a number, and the highest number never comes again."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster.owner import owner_files
from llada_sft.cluster.owner.identity import Owner


def owner(token: str) -> Owner:
    return Owner(token, "process", host="h")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_number_is_given_once(tmp_path: Path) -> None:
    assert owner_files.create(tmp_path, 1, owner("a"))
    assert not owner_files.create(tmp_path, 1, owner("b"))
    assert owner_files.create(tmp_path, 2, owner("b"))
    found = owner_files.find(tmp_path)
    assert (found.number, found.owner) == (2, owner("b"))
    assert names(tmp_path) == ["owner.1", "owner.2"]


def test_of_many_claimants_one_gets_it(tmp_path: Path) -> None:
    barrier, won = threading.Barrier(8), []

    def claim(token: str) -> None:
        barrier.wait()
        if owner_files.create(tmp_path, 1, owner(token)):
            won.append(token)

    threads = [threading.Thread(target=claim, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = owner_files.read(tmp_path, 1)
    assert found
    assert won == [found.token]


def test_a_link_whose_answer_was_lost_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def lost(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lost)
    assert owner_files.create(tmp_path, 1, owner("a"))
    assert not owner_files.create(tmp_path, 1, owner("b"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    assert owner_files.create(tmp_path, 1, owner("a"))
    assert not owner_files.create(tmp_path, 1, owner("b"))
    assert owner_files.read(tmp_path, 1) == owner("a")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        owner_files.create(tmp_path, 1, owner("a"))
    assert names(tmp_path) == []


def test_who_was_asleep_gets_no_old_number(tmp_path: Path) -> None:
    """A claimant that saw owner.1, and slept while many came and the old files were removed."""
    for number in range(1, 10):
        assert owner_files.create(tmp_path, number, owner(str(number)))
    owner_files.tidy(tmp_path)
    assert names(tmp_path) == ["owner.6", "owner.7", "owner.8", "owner.9"]
    assert not owner_files.create(tmp_path, 2, owner("late"))
    assert owner_files.highest(tmp_path) == 9


def test_what_a_killed_claimant_left_goes_later(tmp_path: Path) -> None:
    assert owner_files.create(tmp_path, 1, owner("a"))
    for name, age_s in ((".owner.x.partial", 4000), (".owner.y.partial", 100)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, time.time() - age_s))
    owner_files.tidy(tmp_path)
    assert names(tmp_path) == [".owner.y.partial", "owner.1"]


@pytest.mark.parametrize("ahead_s", [-36_000, 36_000])
def test_clocks_of_hosts_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """The local clock is hours off: only the file server's dates are compared."""
    assert owner_files.create(tmp_path, 1, owner("a"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ahead_s)
    assert -1 < owner_files.find(tmp_path).silent_s < 60
    before = owner_files.server_time(tmp_path) - 500
    os.utime(tmp_path / "owner.1", (before, before))
    assert 499 < owner_files.find(tmp_path).silent_s < 560
    owner_files.touch(tmp_path, 1)
    assert -1 < owner_files.find(tmp_path).silent_s < 60


@pytest.mark.parametrize("text", ["", "{", '{"kind": "process"', "[]", '{"kind": "job"}', "\0" * 9])
def test_a_garbled_file_has_no_owner(tmp_path: Path, text: str) -> None:
    (tmp_path / "owner.3").write_text(text)
    for name in ("owner.04", "owner.", "owner.5.bak", "owner.x", "owner.-9"):
        (tmp_path / name).touch()
    found = owner_files.find(tmp_path)
    assert (found.number, found.owner) == (3, None)
    assert owner_files.create(tmp_path, 4, owner("a"))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_something_else_in_place_of_a_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "owner.3")
    found = owner_files.find(tmp_path)
    assert (found.number, found.owner) == (3, None)
    assert not owner_files.create(tmp_path, 3, owner("a"))


def test_a_file_is_readable_by_people(tmp_path: Path) -> None:
    owner_files.create(tmp_path, 1, owner("a"))
    assert json.loads((tmp_path / "owner.1").read_text())["host"] == "h"
