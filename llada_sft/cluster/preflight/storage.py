"""Whether run.root has room for the run's checkpoints, and whether the nodes share its files.

The sizes are those of `--plan`. Free space and quotas are those of the machine that launches.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from llada_sft.cluster import slurm
from llada_sft.cluster.preflight.mounts import IN_MEMORY, LOCAL, Mount, mount_of, read_mounts
from llada_sft.config import Config
from llada_sft.errors import ConfigError, LaunchError, LladaSftError
from llada_sft.run_dir import RunDir

# Seconds for the tool that knows a quota.
_QUOTA_S = 2.0
# Columns of `quota` and `lfs quota`: kB, soft and hard limit, grace; files, and the same of them.
_QUOTA_COLUMNS = 8
# Files of a run besides those of its checkpoints: its copy of the code, logs.
_RUN_FILES = 1000
_FILES_OF_A_RANK = 4


def require(config: Config, run: RunDir, shared: bool) -> list[str]:
    """Check that the first checkpoint can be written.

    Args:
        config: The config, with absolute paths.
        run: The run directory, which need not exist.
        shared: Whether nodes of a cluster will use the run.

    Returns:
        One line for each thing that may be wrong.

    Raises:
        ConfigError: There is no room for a single checkpoint.
    """
    mounts = read_mounts()
    mount = mount_of(run.path, mounts)
    lines = [] if mount is None else list(_room(config, run, mount))
    if shared and config.slurm.node_range[-1] > 1:
        lines += _not_shared(config, run, mounts)
    return [f"warning          {line}" for line in lines]


def _room(config: Config, run: RunDir, mount: Mount) -> Iterator[str]:
    """Compare free space with what checkpoints take, as far as both are known."""
    size = _checkpoint_bytes(config)
    try:
        space = os.statvfs(_lowest_folder(run.path))
        number = _more_checkpoints(config, run)
    except OSError:
        # place.py says whether the folder can be used.
        return
    # Some file systems do not say how large they are.
    if size is None or space.f_blocks == 0:
        return
    free = space.f_bavail * space.f_frsize
    where = f"run.root: {mount} has {_gb(free)} free, and a checkpoint takes {_gb(size)}"
    if free < size:
        raise ConfigError(
            f"{where}: it could not be saved; free some space, or set run.root to another folder"
        )
    if free < number * size:
        yield (
            f"{where}, {number} of them {_gb(number * size)} (train.keep_checkpoints, and the one"
            " that is written): free some space, or keep fewer"
        )
    if (room := _quota_room(mount)) is not None and room < number * size:
        yield (
            f"run.root: your quota on {mount} leaves {_gb(room)}, and {number} checkpoints take"
            f" {_gb(number * size)}: free some space, or set run.root to another folder"
        )
    files = _RUN_FILES + number * _FILES_OF_A_RANK * config.largest_world_size
    if space.f_files and space.f_favail < files:
        yield (
            f"run.root: {mount} has room for {space.f_favail:,} more files, and the run makes about"
            f" {files:,}: remove some, or set run.root to another folder"
        )


def _checkpoint_bytes(config: Config) -> int | None:
    """Return the bytes of a checkpoint; None if the model cannot be read: preflight says why."""
    from llada_sft.plan.cost import checkpoint_bytes
    from llada_sft.plan.setup import setup_of

    try:
        return checkpoint_bytes(config, setup_of(config).sizes)
    except LladaSftError:
        return None


def _more_checkpoints(config: Config, run: RunDir) -> int:
    """Return how many checkpoints there will be in addition to those that are there."""
    from llada_sft.training.checkpoint.folder import list_named

    train = config.train
    most = train.keep_checkpoints + 1 + (train.keep_best is not None)
    return max(1, most - len(list_named(run.checkpoints)))


def _lowest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _quota_room(mount: Mount) -> int | None:
    """Return the bytes that the user's quota leaves; None if there is none, or nobody knows."""
    user = str(os.getuid())
    if mount.type == "lustre":
        command = ["lfs", "quota", "-q", "-u", user, mount.point]
    else:
        command = ["quota", "-w", "-p", "-f", mount.point]
    try:
        return parse_quota(slurm.run_tool(*command, timeout_s=_QUOTA_S))
    except LaunchError as error:
        # `quota` fails where something is above its limit, and prints the same.
        return parse_quota(str(error))


def parse_quota(text: str) -> int | None:
    """Return the bytes that are left of a quota, of the last line that names numbers.

    `lfs quota` and `quota` have the same columns after the name of the file system. An asterisk
    marks a number above its limit, a limit of 0 is none.
    """
    rows = [line.replace("*", "").split()[-_QUOTA_COLUMNS:] for line in text.splitlines()]
    for row in reversed(rows):
        if len(row) == _QUOTA_COLUMNS and all(column.isdigit() for column in row[:3]):
            used, soft, hard = map(int, row[:3])
            limit = min([limit for limit in (soft, hard) if limit], default=0)
            return max(0, limit - used) * 1024 if limit else None
    return None


def _not_shared(config: Config, run: RunDir, mounts: list[Mount]) -> Iterator[str]:
    """Yield a line for each file system of this machine alone that the ranks would read."""
    keys: dict[Mount, list[str]] = {}
    for key, path in _paths(config, run):
        mount = mount_of(path, mounts)
        if mount is not None and mount.type in IN_MEMORY | LOCAL:
            keys.setdefault(mount, []).append(key)
    if keys and _all_nodes_are_here():
        return
    for mount, names in keys.items():
        listed = ", ".join(dict.fromkeys(names))
        if mount.type in IN_MEMORY:
            yield (
                f"{listed}: {mount} is in the memory of this machine: no other node can see it; use"
                " a folder that all nodes share"
            )
        else:
            yield (
                f"{listed}: {mount} is a file system of this machine: if other nodes do not mount"
                " it, use a folder that all nodes share"
            )


def _all_nodes_are_here() -> bool:
    """Return whether each node of the cluster is this machine, as on a cluster of one machine."""
    try:
        hosts = slurm.node_hosts()
    except LaunchError:
        return False
    return {host.partition(".")[0] for host in hosts} == {os.uname().nodename.partition(".")[0]}


def _paths(config: Config, run: RunDir) -> Iterator[tuple[str, Path]]:
    from llada_sft.data.sources import list_sources, list_validation

    yield "run.root", run.path
    try:
        for key, sources in (
            ("data.train", list_sources(config.data, config.train.epochs)),
            ("data.validation", list_validation(config.data)),
        ):
            for source in sources:
                shard = source.shards[0].shard
                if isinstance(shard, Path):
                    yield key, shard
    except LladaSftError:
        # Preflight says why.
        return
    yield "model.path", Path(config.model.path)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
