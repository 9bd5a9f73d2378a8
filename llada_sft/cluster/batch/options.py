"""The options that a config gives to sbatch and srun: how they are written, and for how long.

`begin`, `deadline`, `dependency` and `hold` belong to one submission. They are not written to
config.yaml, so a resume does not repeat them. SLURM does not repeat them at a requeue, either, but
for a deadline, which stays the moment that it was (seen on 22.05.8).
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from llada_sft.config import Config
from llada_sft.errors import LaunchError

Options = Mapping[str, str | int | bool]
ONE_SHOT = ("begin", "deadline", "dependency", "hold")
_MANY_CLUSTERS = re.compile(r",|^\s*all\s*$", re.IGNORECASE)


def words(options: Options) -> list[str]:
    """Return options as arguments of a command; those that are false are not given."""
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value is not False
    ]


def one_shots(config: Config) -> dict[str, str | int | bool]:
    """Return the options of `slurm.extra` that belong to one submission, also abbreviated."""
    return {name: value for name, value in config.slurm.extra.items() if _is_one_shot(name)}


def without_one_shots(config: Config) -> Config:
    """Return the config that a run keeps: without options that belong to one submission."""
    kept = {name: value for name, value in config.slurm.extra.items() if not _is_one_shot(name)}
    return with_extra(config, kept)


def with_extra(config: Config, extra: Mapping[str, Any]) -> Config:
    """Return a config with another `slurm.extra`."""
    slurm = config.slurm.model_copy(update={"extra": dict(extra)})
    return config.model_copy(update={"slurm": slurm})


def require_one_cluster() -> None:
    """Check that the shell does not name several clusters.

    Raises:
        LaunchError: It does: sbatch would choose one, and nothing here would know which.
    """
    clusters = os.environ.get("SLURM_CLUSTERS", "")
    if _MANY_CLUSTERS.search(clusters):
        raise LaunchError(
            f"SLURM_CLUSTERS: names several clusters, got {clusters!r}: the job would not be found"
            " again on the one that sbatch takes; set it to one cluster"
        )


def gpus_per_node(config: Config) -> int:
    """Return how many GPUs to ask for: one per rank unless the config sets the number."""
    if config.slurm.gpus_per_node is not None:
        return config.slurm.gpus_per_node
    return 0 if config.train.accelerator == "cpu" else config.slurm.ranks_per_node


def _is_one_shot(name: str) -> bool:
    return any(option.startswith(name) for option in ONE_SHOT)
