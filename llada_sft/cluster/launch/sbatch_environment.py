"""Which of the submitting shell's SLURM variables sbatch and the job get.

A shell inside a job has the SLURM_* of that job, and srun in the new job would take them for
options: one rank on two nodes, or memory that contradicts the request. SBATCH_* override the
options in the batch script, which are those of the config. Of both, only these pass: how to reach
SLURM; and account, partition, qos and reservation where the config does not set them. SRUN_* are
options, too, and do not pass.

SBATCH_EXPORT and SLURM_EXPORT_ENV do not pass: a job has all other variables of the shell that
launched it, because its ranks run that shell's Python; setup.sh is the place for changes.
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
    """Remove the variables that do not pass from this process's environment during the context."""
    before = dict(os.environ)
    for name in before.keys() - passed(before, config).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def lines(environment: Mapping[str, str], config: Config) -> list[str]:
    """List, as comments of a dry run, which variables of SLURM pass and which do not."""
    of_slurm = sorted(name for name in environment if _OF_SLURM.match(name))
    kept = passed(environment, config)
    said = [
        f"#   {name}={'***' if name in _SECRETS else environment[name]!r}"
        for name in of_slurm
        if name in kept
    ]
    removed = [name for name in of_slurm if name not in kept]
    title = ["# SLURM variables of this shell that sbatch gets:"] if said else []
    gone = [f"# SLURM variables of this shell that it does not get: {', '.join(removed)}"]
    return [*title, *said, *(gone if removed else [])]


def _left_open(config: Config) -> Iterator[str]:
    """Name the variables of options that the config does not give."""
    slurm = config.slurm
    given = {
        "SBATCH_ACCOUNT": slurm.account,
        "SBATCH_PARTITION": slurm.partition,
        "SBATCH_QOS": slurm.qos,
        "SBATCH_RESERVATION": slurm.extra.get("reservation"),
    }
    yield from (name for name, value in given.items() if value is None)
