"""All checks of a job that is about to be submitted, so that a user sees all problems at once."""

import os
import sys
from collections.abc import Callable

from llada_sft.cluster import slurm
from llada_sft.cluster.preflight import can_start, hook_trial, storage
from llada_sft.config import Config
from llada_sft.entry import print_or_drop
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

# Seconds for the question whether a job can start.
_START_S = 5.0


def require(config: Config, run: RunDir, submits: bool) -> list[str]:
    """Check what only matters for ranks that are about to start.

    Args:
        config: The config, with absolute paths.
        run: The run directory, which need not exist.
        submits: Whether the ranks start on the nodes of a job, and not on this machine at once.

    Returns:
        One line for each thing that may be wrong, or that the job would wait for.

    Raises:
        ConfigError: It has one line for each problem.
    """
    checks: list[Callable[[], list[str]]] = [lambda: storage.require(config, run, submits)]
    if submits:
        checks += [lambda: hook_trial.require(config), lambda: _can_start(config, run)]
    lines: list[str] = []
    problems: list[str] = []
    for check in checks:
        try:
            lines += check()
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return lines


def _can_start(config: Config, run: RunDir) -> list[str]:
    # Its own limit: what SLURM takes here must not be missing for the submission.
    with slurm.patience(_START_S):
        return can_start.require(config, run)


def notice_allocation() -> None:
    """Print to stderr that this shell is inside a job, if it is: another job does not use it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        print_or_drop(
            f"note: this shell is inside job {job}, and the run becomes a job of its own, which"
            " does not use that allocation: --here runs it inside",
            sys.stderr,
        )
