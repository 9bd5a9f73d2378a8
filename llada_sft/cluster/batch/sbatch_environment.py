"""Which of the submitting shell's SLURM variables sbatch and the job get.

A shell inside a job has the SLURM_* variables of that job, and srun in the new job would take them
for options: one rank on two nodes, or memory that contradicts the request. SBATCH_* variables
override the options in the batch script, which come from the config. Of both, only these are kept:
how to reach SLURM; and account, partition, qos, reservation and wckey if the config does not set
them.
SRUN_* variables are options, too, and are removed.

SBATCH_EXPORT and SLURM_EXPORT_ENV are removed: a job gets all other variables of the shell that
launched it, because its ranks run that shell's Python. setup.sh is the place for changes.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llada_sft.config import Config

_OF_SLURM = re.compile(r"(?:SLURM|SBATCH|SRUN|SLURMD)_")
_REACH_SLURM = ("SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
_SECRETS = {"SLURM_JWT"}


def passed(environment: Mapping[str, str], config: Config) -> dict[str, str]:
    """Return the part of an environment that sbatch and the job get."""
    kept = {*_REACH_SLURM, *_left_open(config)}
    return {
        name: value
        for name, value in environment.items()
        if name in kept or not _OF_SLURM.match(name)
    }


@contextmanager
def for_sbatch(config: Config) -> Iterator[None]:
    """Remove the variables that sbatch must not get from this process's environment meanwhile."""
    before = dict(os.environ)
    for name in before.keys() - passed(before, config).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def lines(environment: Mapping[str, str], config: Config) -> list[str]:
    """Return the comments of a dry run: which SLURM variables sbatch gets, and which not."""
    of_slurm = sorted(name for name in environment if _OF_SLURM.match(name))
    kept = passed(environment, config)
    shown = [
        f"#   {name}={'***' if name in _SECRETS else environment[name]!r}"
        for name in of_slurm
        if name in kept
    ]
    removed = [name for name in of_slurm if name not in kept]
    title = ["# SLURM variables of this shell that sbatch gets:"] if shown else []
    others = [f"# SLURM variables of this shell that it does not get: {', '.join(removed)}"]
    return [*title, *shown, *(others if removed else [])]


def _left_open(config: Config) -> Iterator[str]:
    """Yield the variables of the options that the config does not set."""
    slurm = config.slurm
    given = {
        "SBATCH_ACCOUNT": slurm.account,
        "SBATCH_PARTITION": slurm.partition,
        "SBATCH_QOS": slurm.qos,
        "SBATCH_RESERVATION": slurm.extra.get("reservation"),
        "SBATCH_WCKEY": slurm.extra.get("wckey"),
    }
    yield from (name for name, value in given.items() if value is None)
