"""The paths in a config: made absolute, or changed in another way."""

import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llada_sft.config.schema import Config
from llada_sft.config.sections.data import SourceConfig
from llada_sft.config.sections.slurm import ContainerConfig, is_image_file, mount_parts
from llada_sft.config.values import is_url


def resolve_paths(config: Config, base: str | Path) -> Config:
    """Make every path of a config absolute; the relative ones start at `base`, URLs stay."""

    def absolute(path: str) -> str:
        if is_url(path):
            return path
        # Not resolve(): a cluster's links (/home, automounts) mean the same on every node.
        # Not Path.expanduser(), which raises where there is no such user: `~x` is then a name.
        return os.path.normpath(Path.cwd() / base / os.path.expanduser(path))  # noqa: PTH111

    return map_paths(config, absolute)


def map_paths(config: Config, change: Callable[[str], str]) -> Config:
    """Return a config with every path changed by a function, which is given URLs, too."""

    def changed(path: Any) -> Any:
        # data.train may be a list, or sources by name.
        if isinstance(path, tuple):
            return tuple(map(changed, path))
        if isinstance(path, dict):
            return {name: changed(source) for name, source in path.items()}
        if isinstance(path, SourceConfig):
            return path.model_copy(update={"path": changed(path.path)})
        return change(path)

    def section(name: str, *keys: str) -> Any:
        values = {key: getattr(getattr(config, name), key) for key in keys}
        paths = {key: changed(value) for key, value in values.items() if value is not None}
        return getattr(config, name).model_copy(update=paths)

    slurm = section("slurm", "setup")
    container = slurm.container and _container_with_paths(slurm.container, change)
    return config.model_copy(
        update={
            "run": section("run", "root"),
            "model": section("model", "path"),
            "data": section("data", "train", "validation", "hook", "cache_dir"),
            "slurm": slurm.model_copy(update={"container": container}),
        }
    )


def _container_with_paths(
    container: ContainerConfig, change: Callable[[str], str]
) -> ContainerConfig:
    """Return a container with its paths of the host changed, as far as they are not targets."""
    mounts = []
    for mount in container.mounts:
        source, target, mode = mount_parts(mount)
        keeps_path = source == target
        source = change(source)
        mounts.append(f"{source}:{source if keeps_path else target}:{mode}")
    is_file = is_image_file(container.kind, container.image)
    image = change(container.image) if is_file else container.image
    return container.model_copy(update={"mounts": tuple(mounts), "image": image})
