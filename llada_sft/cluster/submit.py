"""A run directory -> one SLURM job, by submitit: the sbatch text, and its submission.

submitit has no public dry run: `_make_sbatch_string` is private and used here only, with a test
that what it says is what is submitted. The pickled job is `llada_sft.cluster.job.run` by reference
and the path of the run directory; submitit's own requeueing is never reached (`preemption.py`).
"""

import shlex
import shutil
import sys
from typing import Any

from llada_sft.config import Config
from llada_sft.config.schema import SlurmConfig
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

# Options that other keys of the config say, or that this file depends on: not for `slurm.extra`.
TAKEN_OPTIONS = frozenset(
    {"job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem"}
    | {"time", "partition", "account", "qos", "constraint", "exclude", "signal", "output"}
    | {"mincpus", "error", "open-mode", "requeue", "no-requeue", "wckey", "wrap"}
)
# `RunDir.srun_log`, in the shell's words.
_SRUN_LOG = '"${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}_srun.log"'


def check_extra(config: Config) -> None:
    """Refuse `slurm.extra` options that would contradict the rest of the batch script.

    Raises:
        ConfigError: one line for each such option.
    """
    taken = sorted(TAKEN_OPTIONS & config.slurm.extra.keys())
    if taken:
        raise ConfigError(
            "\n".join(
                f"slurm.extra.{option}: is set by the launcher; use the key of its own in slurm,"
                " or leave it out"
                for option in taken
            )
        )


def sbatch_text(config: Config, run: RunDir, python: str = sys.executable) -> str:
    """Write the batch script that `submit` hands to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(run.slurm))}"
    text: str = _make_sbatch_string(
        command=command, folder=run.slurm, **_parameters(config, run, python)
    )
    return text


def submit(config: Config, run: RunDir) -> str:
    """Submit the run and give its job id; `job.sbatch` keeps the text that SLURM got.

    Raises:
        LaunchError: there is no SLURM here, or sbatch refuses the job.
    """
    require_sbatch()
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    from llada_sft.cluster import job

    executor = SlurmExecutor(folder=run.slurm)
    executor.update_parameters(**_parameters(config, run, sys.executable))
    try:
        submitted = executor.submit(job.run, str(run.path))
    except FailedJobError as error:
        raise LaunchError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
    shutil.copyfile(submitted.paths.submission_file, run.sbatch)
    return str(submitted.job_id)


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


def _parameters(config: Config, run: RunDir, python: str) -> dict[str, Any]:
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
        "setup": _setup_lines(run, python, has_setup=slurm.setup is not None),
        "teardown": _teardown_lines(run, python),
        "additional_parameters": {"requeue": True, **slurm.extra},
        # srun does not inherit --cpus-per-task since 22.05.
        "srun_args": [
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={slurm.cpus_per_rank}",
            "--open-mode=append",
        ],
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
    # As sbatch would set it, had it been given the option: for srun, and for what counts the ranks.
    parameters["setup"].insert(0, f"export SLURM_NTASKS_PER_NODE={slurm.ranks_per_node}")


def gpus_per_node(config: Config) -> int:
    """Count the GPUs to ask for: one per rank unless the config says otherwise."""
    if config.slurm.gpus_per_node is not None:
        return config.slurm.gpus_per_node
    return 0 if config.train.accelerator == "cpu" else config.slurm.ranks_per_node


def _setup_lines(run: RunDir, python: str, has_setup: bool) -> list[str]:
    source = [f"source {shlex.quote(str(run.setup))}"] if has_setup else []
    return [
        *source,
        # The run's own copy of the code goes before what setup.sh may have set; and `python -m`
        # would put the current folder first of all, where the working tree often is.
        f'export PYTHONPATH={shlex.quote(str(run.code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export PYTHONSAFEPATH=1",
        # The batch script runs on the job's first node, where rank 0 is. A requeued job runs it
        # again: on other nodes, and with a port that is free there and then.
        'export MASTER_ADDR="${SLURMD_NODENAME:-$(hostname)}"',
        f'export MASTER_PORT="$({shlex.quote(python)} -m llada_sft.cluster.ports)"',
        # TERM comes with scancel, a requeue and the time limit, and must not end this script before
        # the lines after srun. A handler, unlike '', is not inherited by srun and the ranks.
        "trap : TERM USR2",
        f"{_supervisor(run, python, 'begin')} || exit",
        # srun's own words tell which rank was killed. The ranks' logs are not in here.
        f"exec 2>> {shlex.quote(str(run.slurm))}/{_SRUN_LOG}",
    ]


def _teardown_lines(run: RunDir, python: str) -> list[str]:
    return [
        "status=$?",
        # From here on inherited: a requeue sends TERM to this script and to what it runs.
        "trap '' TERM USR2",
        # Its exit code is the script's, and so the job's.
        f'{_supervisor(run, python, "end")} "$status"',
    ]


def _supervisor(run: RunDir, python: str, action: str) -> str:
    module = "llada_sft.cluster.supervisor"
    return f"{shlex.quote(python)} -m {module} {action} {shlex.quote(str(run.path))}"
