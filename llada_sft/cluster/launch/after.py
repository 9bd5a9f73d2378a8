"""`--after RUN|JOB`: a job that starts when another one is over, however that ended.

It is an option of this one submission: a resume does not wait again.
"""

import re
from pathlib import Path

from llada_sft.cluster import history, slurm
from llada_sft.cluster.batch.options import one_shots, with_extra
from llada_sft.cluster.watch.find_run import find_run
from llada_sft.config import Config
from llada_sft.errors import ConfigError, LaunchError

_JOB = re.compile(r"[0-9]+(_[0-9]+)?")


def with_dependency(config: Config, after: str, submits: bool) -> Config:
    """Return a config whose job starts after another one.

    Args:
        config: The config.
        after: The number of a job, or the directory or name of a run, whose last job is meant.
        submits: Whether a job is to be submitted.

    Raises:
        ConfigError: There is no such run, it has no job, the config has a dependency, too, or
            nothing is to be submitted.
        LaunchError: SLURM does not know the job, or does not answer.
    """
    if not submits:
        raise ConfigError("--after: is for a job of SLURM: remove it, --local, --here or --prepare")
    job_id = _job_of(after, Path(config.run.root))
    # sbatch accepts an abbreviation, too.
    if any("dependency".startswith(name) for name in one_shots(config)):
        raise ConfigError("--after: slurm.extra.dependency is given, too; remove one of them")
    if job_id is None:
        return config
    return with_extra(config, {**config.slurm.extra, "dependency": f"afterany:{job_id}"})


def _job_of(after: str, root: Path) -> str | None:
    """Return the job to wait for; None if it is over for so long that SLURM has forgotten it."""
    if _JOB.fullmatch(after):
        if not slurm.job_fields(after):
            raise LaunchError(f"--after: SLURM has no job {after}; see  squeue --me")
        return after
    job_id = history.read(find_run(after, root).journal).job_id
    if job_id is None:
        raise ConfigError(
            f"--after: {after}: the run has no job: launch it first, or give a job's number"
        )
    return job_id if slurm.job_fields(job_id) else None
