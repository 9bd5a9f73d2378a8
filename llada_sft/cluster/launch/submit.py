"""A run directory -> one SLURM job, by submitit: the sbatch text, and its submission.

submitit writes the options and submits. What the job runs is `batch_script.py`, whose ranks are
plain commands: nothing is pickled, and submitit is not there when a job runs. It has no public dry
run and no public way to submit a command: `_make_sbatch_string` and `_submit_command` are private
and used here only, with a test that what the dry run says is what is submitted.
"""

import shutil
import sys
from typing import Any

from llada_sft.cluster import slurm
from llada_sft.cluster.launch import batch_script, sbatch_environment
from llada_sft.config import Config
from llada_sft.config.schema import SlurmConfig
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

# Options that other keys of the config say, or that this file depends on: not for `slurm.extra`.
TAKEN_OPTIONS = frozenset(
    {"job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem"}
    | {"time", "partition", "account", "qos", "constraint", "exclude", "signal", "output"}
    | {"mincpus", "error", "open-mode", "requeue", "no-requeue", "wckey", "wrap"}
    # Its tasks would be several writers of one run.
    | {"array"}
    # Whose jobs scontrol and scancel, here and in the job, would not find.
    | {"clusters"}
    # With these sbatch does not submit, does not come back, or does not say the job's number.
    | {"help", "usage", "version", "test-only", "wait", "parsable", "quiet"}
)
_TAKEN = "is set by the launcher; use the key of its own in slurm, or leave it out"
_WHY = {
    # SLURM 25.11 would hold a job whose attempt fails (REQUEUE_HOLD), which we requeue ourselves.
    "requeue": "is set by the launcher, and never to 'expedite', which holds a job after an attempt"
    " that failed; leave it out",
    "array": "starts several jobs that would write into one run directory: leave it out,"
    " and launch one run for each, with another run.name",
    "clusters": "is ignored by the commands that look for the job: leave it out,"
    " and set the variable SLURM_CLUSTERS in the shell instead",
}
# sbatch accepts the beginning of an option for it; but these keys are options themselves.
_WHOLE = frozenset({"gpus"})

# Exit codes of coreutils' `timeout`: it ended the command, or had to kill it.
_TIMED_OUT = (124, 137)


def check_extra(config: Config) -> None:
    """Refuse `slurm.extra` options that would contradict the rest of the batch script.

    Raises:
        ConfigError: one line for each such option.
    """
    extra = config.slurm.extra
    problems = [
        f"slurm.extra.{key}: {'' if key == option else f'short for {option}, which '}"
        f"{_WHY.get(option, _TAKEN)}"
        for key in sorted(extra)
        if (option := _taken(key))
    ]
    if not str(extra.get("export", "ALL")).startswith("ALL"):
        problems.append(
            f"slurm.extra.export: must begin with ALL, got {extra['export']!r}: the ranks run the"
            " Python of the shell that launches; change its variables in slurm.setup"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _taken(key: str) -> str | None:
    """Return the refused option that sbatch would read a key as."""
    if key in TAKEN_OPTIONS or key in _WHOLE:
        return key if key in TAKEN_OPTIONS else None
    return next((option for option in sorted(TAKEN_OPTIONS) if option.startswith(key)), None)


def sbatch_text(config: Config, run: RunDir, python: str = sys.executable) -> str:
    """Write the batch script that `submit` hands to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = batch_script.script(config, run, python)
    text: str = _make_sbatch_string(command=command, folder=run.slurm, **_parameters(config))
    return text


def submit(config: Config, run: RunDir) -> str:
    """Submit the run and give its job id; `job.sbatch` keeps the text that SLURM got.

    Raises:
        LaunchError: there is no SLURM here, or sbatch refuses the job.
    """
    require_sbatch()
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=run.slurm)
    executor.update_parameters(**_parameters(config))
    wait_s = max(1.0, slurm.patience_left())
    executor._make_submission_command = lambda file: _with_timeout(["sbatch", str(file)], wait_s)
    try:
        with sbatch_environment.for_sbatch(config):
            submitted = executor._submit_command(batch_script.script(config, run, sys.executable))
    except FailedJobError as error:
        if getattr(error.__cause__, "returncode", 0) in _TIMED_OUT:
            raise LaunchError(
                f"sbatch: no answer in {wait_s:.0f} s: it may have submitted the job or not; look"
                f" with  squeue --me --name={config.run.name}  and try again"
            ) from None
        raise LaunchError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
    except FailedSubmissionError as error:
        raise LaunchError(
            f"sbatch did not say the job's number: {' '.join(str(error).split())}:"
            " look for the job with  squeue --me"
        ) from None
    shutil.copyfile(submitted.paths.submission_file, run.sbatch)
    return str(submitted.job_id)


def _with_timeout(command: list[str], seconds: float) -> list[str]:
    """Return a command that is ended after this time, with all that it has started.

    submitit itself waits for sbatch without a limit.
    """
    if shutil.which("timeout") is None:
        return command
    return ["timeout", "--kill-after=1", f"{seconds:.1f}", *command]


def require_sbatch() -> None:
    """Check that this is a machine that jobs can be submitted from.

    Raises:
        LaunchError: it is not.
    """
    for tool in ("sbatch", "srun"):
        if shutil.which(tool) is None:
            raise LaunchError(
                f"{tool} not found: this machine has no SLURM; use --local, or run on a login node"
            )


def _parameters(config: Config) -> dict[str, Any]:
    """Say the job in submitit's names."""
    slurm = config.slurm
    parameters: dict[str, Any] = {
        "job_name": config.run.name,
        "nodes": slurm.nodes,
        "ntasks_per_node": slurm.ranks_per_node,
        "cpus_per_task": slurm.cpus_per_rank,
        "gpus_per_node": gpus_per_node(config) or None,
        "mem": None if slurm.mem_gb_per_node is None else f"{slurm.mem_gb_per_node}G",
        "time": slurm.time_min,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "signal_delay_s": slurm.signal_lead_s,
        # One log per rank, in the order in which things were said.
        "stderr_to_stdout": True,
        # submitit's default, "submitit", is refused where keys are checked.
        "wckey": "",
        "additional_parameters": {"requeue": True, **slurm.extra},
        # The ranks are started by our own script.
        "use_srun": False,
    }
    if slurm.elastic is not None:
        _ask_for_a_range(parameters, slurm)
    return {name: value for name, value in parameters.items() if value is not None}


def _ask_for_a_range(parameters: dict[str, Any], slurm: SlurmConfig) -> None:
    """Ask for any number of nodes of the range, at each start anew.

    Not with --ntasks-per-node: SLURM turns it into the tasks of the nodes that the first attempt
    got, and a requeued job waits for so many nodes for ever (seen on 22.05.8). So the tasks are
    srun's alone, and of each node the job says how many CPUs it needs.
    """
    least, most = slurm.node_range[0], slurm.node_range[-1]
    del parameters["ntasks_per_node"], parameters["cpus_per_task"]
    # Over submitit's own `nodes`, which must be a number.
    parameters["additional_parameters"] |= {
        "nodes": f"{least}-{most}",
        "mincpus": slurm.ranks_per_node * slurm.cpus_per_rank,
    }


def gpus_per_node(config: Config) -> int:
    """Count the GPUs to ask for: one per rank unless the config says otherwise."""
    if config.slurm.gpus_per_node is not None:
        return config.slurm.gpus_per_node
    return 0 if config.train.accelerator == "cpu" else config.slurm.ranks_per_node
