"""Room for checkpoints, quotas, and file systems that other nodes cannot see."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llada_sft.cluster.preflight import mounts, storage
from llada_sft.cluster.preflight.mounts import Mount, mount_of, parse_mount
from llada_sft.config import Config, load_config, resolve_paths
from llada_sft.errors import ConfigError
from llada_sft.model.settings import architecture_of
from llada_sft.run_dir import RunDir
from tests.unit.cluster.conftest import MODEL, FakeTool

PARAMETERS = sum(map(math.prod, architecture_of(MODEL).tensor_shapes().values()))
# Master weights and both moments in fp32, and weights in bf16.
CHECKPOINT = 14 * PARAMETERS
# Of /proc/self/mountinfo.
LINES = {
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard": Mount("/", "ext4"),
    "29 25 0:27 / /dev/shm rw shared:5 master:2 - tmpfs tmpfs rw,size=1k": Mount(
        "/dev/shm", "tmpfs"
    ),
    r"90 27 0:50 /export /mnt/my\040data rw - nfs4 server:/export rw,vers=4.2": Mount(
        "/mnt/my data", "nfs4"
    ),
    "91 27 0:51 / /lustre rw - lustre 10.0.0.1@o2ib:10.0.0.2@o2ib:/scratch rw": Mount(
        "/lustre", "lustre"
    ),
    "92 27 0:52 / /a - b rw": None,
    "": None,
}


@pytest.mark.parametrize(("line", "mount"), LINES.items())
def test_mountinfo(line: str, mount: Mount | None) -> None:
    assert parse_mount(line) == mount


def test_the_mount_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    known = [
        Mount("/", "ext4"),
        Mount(str(tmp_path / "there"), "tmpfs"),
        Mount(str(tmp_path / "there"), "nfs"),
        Mount(str(tmp_path / "there/deeper"), "lustre"),
    ]
    assert mount_of(tmp_path / "there/a", known) == known[2]
    assert mount_of(tmp_path / "link/a", known) == known[2]
    assert mount_of(tmp_path / "there/deeper/not/yet", known) == known[3]
    # No part of a name counts.
    assert mount_of(tmp_path / "there_too", known) == known[0]
    assert mount_of(tmp_path, []) is None
    real = mount_of(tmp_path, mounts.read_mounts())
    assert real and str(tmp_path).startswith(real.point)


def config_of(project: Path, *overrides: str) -> Config:
    return resolve_paths(load_config("a.yaml", overrides), project)


def run_of(config: Config) -> RunDir:
    return RunDir(Path(config.run.root) / config.run.name)


def test_this_machine_has_room_for_a_tiny_network(project: Path) -> None:
    config = config_of(project)
    assert storage.require(config, run_of(config), shared=False) == []


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand for a file system: what statvfs says of it, and its mount."""
    space = SimpleNamespace(
        f_blocks=1, f_bavail=10**9, f_frsize=1, f_files=10**6, f_favail=10**6, f_flag=0
    )
    monkeypatch.setattr(os, "statvfs", lambda path: space)
    monkeypatch.setattr(storage, "read_mounts", lambda: [Mount("/", "wekafs")])
    return space


@pytest.mark.parametrize(
    ("free", "overrides", "said"),
    [
        (3 * CHECKPOINT, [], None),
        (3 * CHECKPOINT - 1, [], "3 of them"),
        (3 * CHECKPOINT, ["train.keep_best=validation_loss", "data.validation=shards"], "4 of"),
        (2 * CHECKPOINT, ["train.keep_checkpoints=1"], None),
        (CHECKPOINT, [], "3 of them"),
        (0, ["model.path=nowhere"], None),
    ],
)
def test_room_for_several_checkpoints(
    project: Path, disk: SimpleNamespace, free: int, overrides: list[str], said: str | None
) -> None:
    disk.f_bavail = free
    config = config_of(project, *overrides)
    lines = storage.require(config, run_of(config), shared=True)
    assert lines == [] if said is None else said in lines[0] and len(lines) == 1


def test_room_for_none(project: Path, disk: SimpleNamespace) -> None:
    disk.f_bavail = CHECKPOINT - 1
    config = config_of(project)
    with pytest.raises(ConfigError) as error:
        storage.require(config, run_of(config), shared=True)
    assert str(error.value) == (
        "run.root: / (wekafs) has 0.0 MB free, and a checkpoint takes 0.0 MB: it could not be"
        " saved; free some space, or set run.root to another folder"
    )
    # Where a file system does not say how large it is.
    disk.f_blocks = 0
    assert storage.require(config, run_of(config), shared=True) == []


def test_checkpoints_that_are_there_take_no_further_room(
    project: Path, disk: SimpleNamespace
) -> None:
    config = config_of(project)
    for step in (10, 20):
        (run_of(config).checkpoints / f"step_{step}").mkdir(parents=True)
    disk.f_bavail = CHECKPOINT
    assert storage.require(config, run_of(config), shared=True) == []


def test_too_few_files(project: Path, disk: SimpleNamespace) -> None:
    disk.f_favail = 1023
    config = config_of(project)
    assert storage.require(config, run_of(config), shared=True) == [
        "warning          run.root: / (wekafs) has room for 1,023 more files, and the run makes"
        " about 1,024: remove some, or set run.root to another folder"
    ]
    disk.f_files = 0
    assert storage.require(config, run_of(config), shared=True) == []


# The columns are those of quota(1) of Linux and lfs-quota(1) of Lustre.
QUOTAS = {
    "Disk quotas for user a (uid 1): none": None,
    "Filesystem  blocks quota limit grace files quota limit grace\n"
    "server:/home 100 150 200 0 7 0 0 0": 50 * 1024,
    "/lustre 100 0 200 - 7 0 50 -": 100 * 1024,
    "/lustre 300* 0 200 6d23h 7 0 50 -": 0,
    "/lustre 300 0 0 - 7 0 0 -": None,
    "a-name-that-is-on-a-line-of-its-own\n 8 0 9 - 1 0 0 -": 1024,
    "quota: not found on this machine": None,
}


@pytest.mark.parametrize(("text", "room"), QUOTAS.items())
def test_quotas(text: str, room: int | None) -> None:
    assert storage.parse_quota(text) == room


@pytest.mark.parametrize("code", [0, 1])
def test_a_quota_that_is_too_small_is_a_warning(
    project: Path, disk: SimpleNamespace, fake_tool: FakeTool, code: int
) -> None:
    """`quota` ends with 1 if something is above its limit."""
    fake_tool("quota", f'echo "Filesystem blocks"; echo "s:/h 100 100 200 0 7 0 0 0"; exit {code}')
    config = config_of(project)
    (line,) = storage.require(config, run_of(config), shared=True)
    assert line.startswith("warning          run.root: your quota on / (wekafs) leaves 0.0 MB, and")


def test_files_that_other_nodes_cannot_see(
    project: Path, monkeypatch: pytest.MonkeyPatch, fake_tool: FakeTool
) -> None:
    there = [Mount("/", "nfs4"), Mount(str(project), "xfs"), Mount(f"{project}/shards", "tmpfs")]
    monkeypatch.setattr(storage, "read_mounts", lambda: there)
    two = config_of(project, "slurm.nodes=2")
    assert storage.require(two, run_of(two), shared=True) == [
        f"warning          run.root, model.path: {project} (xfs) is a file system of this machine:"
        " if other nodes do not mount it, use a folder that all nodes share",
        f"warning          data.train: {project}/shards (tmpfs) is in the memory of this machine:"
        " no other node can see it; use a folder that all nodes share",
    ]
    assert storage.require(two, run_of(two), shared=False) == []
    one = config_of(project, "slurm.nodes=1")
    assert storage.require(one, run_of(one), shared=True) == []
    elastic = config_of(project, "slurm.elastic=[1, 2]", "slurm.nodes=2")
    assert len(storage.require(elastic, run_of(elastic), shared=True)) == 2
    # On a cluster of one machine all nodes see it.
    me = os.uname().nodename.partition(".")[0]
    fake_tool("sinfo", f"echo {me}; echo {me}")
    assert storage.require(two, run_of(two), shared=True) == []
    fake_tool("sinfo", f"echo {me}; echo other")
    assert len(storage.require(two, run_of(two), shared=True)) == 2
    # Of a type that nobody knows: as shared as any other.
    monkeypatch.setattr(storage, "read_mounts", lambda: [Mount("/", "fuse.juicefs")])
    assert storage.require(two, run_of(two), shared=True) == []
