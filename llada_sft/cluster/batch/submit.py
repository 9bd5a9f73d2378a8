"""A run directory -> one SLURM job: the submission, with submitit.

The job runs `batch_script.py`, whose ranks are plain commands: nothing is pickled, and a running
job does not use submitit. submitit has no public way to submit a text: `_submit_command` and what
it calls are private. Only this file uses them, and a test checks that the dry run shows what is
submitted.
"""

import shutil

from llada_sft.cluster import slurm
from llada_sft.cluster.batch import options, sbatch_environment
from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.config import Config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

# Exit codes of coreutils' `timeout`: it ended the command, or it had to kill the command.
_TIMED_OUT = (124, 137)


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
