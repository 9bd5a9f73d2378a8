"""The options that a config gives to sbatch and srun: how they are written, and which are refused.

`begin`, `deadline`, `dependency` and `hold` belong to one submission. They are not written to
config.yaml, so a resume does not repeat them. SLURM does not repeat them at a requeue, either, but
for a deadline, which stays the moment that it was (seen on 22.05.8).
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llada_sft.config import Config
from llada_sft.errors import LaunchError

Options = Mapping[str, str | int | bool]
# The keys of an option within `slurm`, and what is wrong with it.
Problem = tuple[tuple[str, str], str]
ONE_SHOT = ("begin", "deadline", "dependency", "hold")
_MANY_CLUSTERS = re.compile(r",|^\s*all\s*$", re.IGNORECASE)

_CONTAINER = "is set by the launcher; use slurm.container, or remove it"
# Options of srun that the batch script sets, or on which it depends.
_SET_BY_THE_SCRIPT = (
    *("jobid", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "export", "unbuffered"),
    *("kill-on-bad-exit", "open-mode", "output", "error"),
)
_TAKEN_BY_STEP: Mapping[str, str] = {
    **dict.fromkeys(_SET_BY_THE_SCRIPT, "is set by the batch script; remove it"),
    **dict.fromkeys(["container-image", "container-mounts", "container-workdir"], _CONTAINER),
    **dict.fromkeys(
        ["help", "usage", "version", "test-only", "no-allocate", "multi-prog", "pty"],
        "would not start the ranks; remove it",
    ),
    "quiet": "hides which rank was killed; remove it",
    "preserve-env": "would let variables of another job set options; remove it",
    "clusters": "is not for the ranks of a job; remove it",
    "signal": "is for the job; use slurm.signal_lead_s",
    "time": "would end the ranks before the job; use slurm.time_min",
}
# srun accepts abbreviations of options; but this key is an option itself.
_WHOLE_OF_STEP = frozenset({"container"})


def words(options: Options) -> list[str]:
    """Return options as arguments of a command; those that are false are not given."""
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value is not False
    ]


def srun_problems(options: Options) -> Iterator[Problem]:
    """Yield the options that `slurm.srun_args` must not have, and why."""
    for key in sorted(options):
        names = [key] if key in _TAKEN_BY_STEP or key in _WHOLE_OF_STEP else sorted(_TAKEN_BY_STEP)
        option = next((name for name in names if name.startswith(key)), "")
        if option in _TAKEN_BY_STEP:
            short = "" if option == key else f"short for {option}, which "
            yield ("srun_args", key), f"{short}{_TAKEN_BY_STEP[option]}"


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
