"""SLURM's own commands, asked directly: sacct may not be there, squeue and scontrol are.

submitit's job states come from sacct, and without it are UNKNOWN for ever.
"""

import os
import re
import subprocess

from llada_sft.errors import LaunchError

TIMEOUT_S = 60
# A job in one of these will not run again by itself. (A requeued job is PENDING.)
ENDED_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE"}
    | {"FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
)


def run_tool(*command: str, timeout_s: float | None = None) -> str:
    """Run a SLURM command and give its output; without a `timeout_s`, wait for TIMEOUT_S.

    Raises:
        LaunchError: it is not there, fails, or does not answer.
    """
    # Times as seconds since 1970: no time zone, and nothing that the user's own setting changes.
    timeout_s = timeout_s or TIMEOUT_S
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} not found on this machine") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{' '.join(command)}: no answer in {timeout_s} s; try again") from None
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise LaunchError(f"{' '.join(command)}: {reason}")
    return done.stdout


def job_fields(job_id: str, timeout_s: float | None = None) -> dict[str, str]:
    """Give what `scontrol show job` says; empty for a job that SLURM has forgotten.

    Raises:
        LaunchError: scontrol is missing or does not answer.
    """
    try:
        text = run_tool("scontrol", "--oneliner", "show", "job", job_id, timeout_s=timeout_s)
    except LaunchError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    return dict(re.findall(r"(\S+?)=(\S*)", text))


def job_state(job_id: str) -> str | None:
    """Give a job's state (PENDING, RUNNING, ...); None when SLURM has forgotten it."""
    return job_fields(job_id).get("JobState")


def has_ended(job_id: str) -> bool:
    """Tell whether a job is over for good."""
    state = job_state(job_id)
    return state is None or state in ENDED_STATES


def requeue(job_id: str) -> None:
    """Put the job back into the queue; SLURM then ends what runs of it."""
    run_tool("scontrol", "requeue", job_id)


def cancel(job_id: str) -> None:
    """Cancel a job: it saves, and is not requeued."""
    run_tool("scancel", job_id)
