"""The container of the ranks: the command that starts a rank in it, and what it must see.

Only the ranks run in the container. The batch script, with `begin`, `port` and `end`, runs on the
host with the Python that launched. So the paths in config.yaml are those of the host: the container
has the run directory at the same path, and data and model must be inside mounts that keep theirs.

An image's own variables may win over those of the job. So `env` sets inside the container what the
ranks depend on: the run's copy of the code, and none of the packages that the user has in a home
folder for the Python of the host.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from llada_sft.cluster.batch.options import gpus_per_node, words
from llada_sft.config import Config
from llada_sft.config.sections.slurm import ContainerConfig, is_image_file, mount_parts
from llada_sft.config.values import is_url
from llada_sft.run_dir import RunDir

# What the list of mounts of each tool cannot hold. pyxis separates a mount's parts by spaces.
_NOT_MOUNTED = {"apptainer": re.compile(r"[,:\"\\]"), "pyxis": re.compile(r"[,:\s\"\\]")}


def srun_words(config: Config, run: RunDir) -> list[str]:
    """Return the options of srun that a config asks for, with those that start its container."""
    given, container = words(config.slurm.srun_args), config.slurm.container
    if container is None or container.kind != "pyxis":
        return given
    return [
        *given,
        f"--container-image={container.image}",
        f"--container-mounts={','.join(_mounts(container, run))}",
        f"--container-workdir={container.workdir or run.path}",
    ]


def rank_words(config: Config, run: RunDir, python: str) -> list[str]:
    """Return the command that is the Python of the ranks.

    Args:
        config: The run's config.
        run: The run directory.
        python: The Python on the host.
    """
    container = config.slurm.container
    if container is None:
        return [python]
    variables = [f"PYTHONPATH={run.code}", "PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1"]
    inside = ["env", *variables, container.python]
    if container.kind == "pyxis":
        return inside
    binds = [word for mount in _mounts(container, run) for word in ("--bind", mount)]
    return [
        *("apptainer", "exec", *(["--nv"] if gpus_per_node(config) else []), *binds),
        *("--pwd", container.workdir or str(run.path), container.image, *inside),
    ]


def problems(config: Config) -> Iterator[str]:
    """Yield a line for each thing that the ranks would miss in the container.

    Args:
        config: The config, with absolute paths.
    """
    container = config.slurm.container
    if container is None:
        return
    run = RunDir(Path(config.run.root) / config.run.name)
    cannot = _NOT_MOUNTED[container.kind]
    if cannot.search(str(run.path)):
        yield f"run.root: {container.kind} cannot mount such a path, got {run.path}; take another"
    for mount in container.mounts:
        source, target, _ = mount_parts(mount)
        if any(map(cannot.search, (source, target))):
            yield f"slurm.container.mounts: {container.kind} cannot mount {mount!r}; rename it"
        elif not Path(source).exists():
            yield f"slurm.container.mounts: {source}: no such file or folder"
    is_file = is_image_file(container.kind, container.image)
    if is_file and not Path(container.image).exists():
        yield f"slurm.container.image: {container.image}: no such file"
    seen = [run.path, *_kept_paths(container)]
    for key, path in _needed_paths(config):
        if not is_url(path) and not any(map(Path(path).is_relative_to, seen)):
            yield f"{key}: {path} is not in the container; add it to slurm.container.mounts"


def _mounts(container: ContainerConfig, run: RunDir) -> list[str]:
    """Return all mounts; the run directory is the last, so that no other one hides it."""
    parts = [mount_parts(mount) for mount in container.mounts]
    given = [
        f"{source}:{target}{'' if mode == 'rw' else f':{mode}'}" for source, target, mode in parts
    ]
    return [*given, f"{run.path}:{run.path}"]


def _kept_paths(container: ContainerConfig) -> Iterator[Path]:
    """Yield the folders that have the same path in the container as on the host."""
    for source, target, _ in map(mount_parts, container.mounts):
        if source == target:
            yield Path(source)


def _needed_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the paths that ranks read or write, with their keys."""
    data = config.data
    yield "model.path", config.model.path
    for path in data.train_paths:
        yield "data.train", path
    for path in data.validation_sets.values():
        yield "data.validation", path
    if data.cache_dir is not None:
        yield "data.cache_dir", data.cache_dir
