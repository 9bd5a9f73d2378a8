"""A run directory -> one SLURM job: the sbatch text, and its submission with submitit.

The job runs `batch_script.py`, whose ranks are plain commands: nothing is pickled, and a running
job does not use submitit. submitit has no public way to submit a text: `_submit_command` and what
it calls are private. Only this file uses them, and a test checks that the dry run shows what is
submitted.
"""

import shutil
import sys
from collections.abc import Callable, Iterator

from llada_sft.cluster import slurm
from llada_sft.cluster.batch import batch_script, directives, options, sbatch_environment
from llada_sft.config import Config
from llada_sft.config.yaml12 import KeyPath
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

# Options that other keys of the config set, or that this file depends on: not for `slurm.extra`.
TAKEN_OPTIONS = frozenset(
    {"job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem"}
    | {"time", "partition", "account", "qos", "constraint", "exclude", "signal", "output"}
    | {"mincpus", "error", "open-mode", "requeue", "no-requeue", "wrap"}
    # Several tasks would write into one run.
    | {"array"}
    # scontrol and scancel, here and in the job, would not find the jobs of another cluster.
    | {"clusters"}
    # The batch script itself runs on the host.
    | {"container-image", "container-mounts", "container-workdir"}
    # With these sbatch does not submit, does not return, or does not print the job's number.
    | {"help", "usage", "version", "test-only", "wait", "parsable", "quiet"}
)
_CONTAINER = "would put the batch script into a container, too; use slurm.container"
_TAKEN = "is set by the launcher; use the key of its own in slurm, or remove it"
_WHY = {
    # SLURM 25.11 would hold a job whose attempt fails (REQUEUE_HOLD); `end` requeues it instead.
    "requeue": "is set by the launcher, and never to 'expedite', which holds a job after an attempt"
    " that failed; remove it",
    "array": "starts several jobs that would write into one run directory: remove it,"
    " and launch one run for each, with another run.name",
    "clusters": "is ignored by the commands that look for the job: remove it,"
    " and set the variable SLURM_CLUSTERS in the shell instead",
    **dict.fromkeys(["container-image", "container-mounts", "container-workdir"], _CONTAINER),
}
# sbatch accepts abbreviations of options; but these keys are options themselves.
_WHOLE = frozenset({"gpus", "container"})

# Exit codes of coreutils' `timeout`: it ended the command, or it had to kill the command.
_TIMED_OUT = (124, 137)


def check_extra(config: Config, origin: Callable[[KeyPath], str] | None = None) -> None:
    """Refuse options of `slurm` that would contradict the rest of the batch script.

    Args:
        config: The config.
        origin: Returns the file and line of a key; None if it is not known.

    Raises:
        ConfigError: It has one line for each such option.
    """
    problems = [*_extra_problems(config), *options.srun_problems(config.slurm.srun_args)]
    if problems:
        lines = (_placed(("slurm", *problem), text, origin) for problem, text in problems)
        raise ConfigError("\n".join(lines))


def _extra_problems(config: Config) -> Iterator[options.Problem]:
    extra = config.slurm.extra
    for key in sorted(extra):
        if option := _taken(key):
            short = "" if key == option else f"short for {option}, which "
            yield ("extra", key), f"{short}{_WHY.get(option, _TAKEN)}"
    export = extra.get("export", False)
    if export is not False and not str(export).startswith("ALL"):
        yield (
            ("extra", "export"),
            f"must start with ALL, got {export!r}: the ranks run the"
            " Python of the shell that launches; change its variables in slurm.setup",
        )


def _placed(key: KeyPath, text: str, origin: Callable[[KeyPath], str] | None) -> str:
    """Return a problem as the reader would write it."""
    where = "" if origin is None else f"{origin(key)}: "
    return f"{where}{'.'.join(map(str, key))}: {text}"


def _taken(key: str) -> str | None:
    """Return the refused option for which sbatch would take a key."""
    if key in TAKEN_OPTIONS or key in _WHOLE:
        return key if key in TAKEN_OPTIONS else None
    return next((option for option in sorted(TAKEN_OPTIONS) if option.startswith(key)), None)


def sbatch_text(config: Config, run: RunDir, python: str = sys.executable) -> str:
    """Return the batch script that `submit` hands to sbatch; one-shot options are in `extra`."""
    options_of_job = "\n".join(directives.lines(config, run))
    body = batch_script.script(config, run, python)
    return f"#!/bin/bash\n\n# Parameters\n{options_of_job}\n\n# command\n{body}\n"


def submit(config: Config, run: RunDir) -> str:
    """Submit the run and return its job id; `job.sbatch` keeps the text that SLURM got.

    Raises:
        LaunchError: This machine has no SLURM, or sbatch refuses the job.
    """
    require_sbatch()
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=run.slurm)
    # What it is given is the whole text.
    executor._make_submission_file_text = lambda text, _: text
    wait_s = max(1.0, slurm.patience_left())
    executor._make_submission_command = lambda file: _with_timeout(["sbatch", str(file)], wait_s)
    try:
        with sbatch_environment.for_sbatch(config):
            submitted = executor._submit_command(sbatch_text(config, run))
    except FailedJobError as error:
        if getattr(error.__cause__, "returncode", 0) in _TIMED_OUT:
            raise LaunchError(
                f"sbatch: no answer in {wait_s:.0f} s: it may have submitted the job or not; look"
                f" with  squeue --me --name={config.run.name}  and try again"
            ) from None
        raise LaunchError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
    except UnicodeEncodeError as error:
        raise LaunchError(
            f"the batch script cannot be written as {error.encoding}: set LC_ALL=C.UTF-8"
        ) from None
    except FailedSubmissionError as error:
        raise LaunchError(
            f"sbatch did not say the job's number: {' '.join(str(error).split())}:"
            " look for the job with  squeue --me"
        ) from None
    shutil.copyfile(submitted.paths.submission_file, run.sbatch)
    return str(submitted.job_id)


def _with_timeout(command: list[str], seconds: float) -> list[str]:
    """Return a command that ends after this time, together with its child processes.

    submitit itself waits for sbatch without a limit.
    """
    if shutil.which("timeout") is None:
        return command
    return ["timeout", "--kill-after=1", f"{seconds:.1f}", *command]


def require_sbatch() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        LaunchError: The machine has no SLURM, or the shell names several clusters.
    """
    options.require_one_cluster()
    for tool in ("sbatch", "srun"):
        if shutil.which(tool) is None:
            raise LaunchError(
                f"{tool} not found: this machine has no SLURM; use --local, or run on a login node"
            )
