"""The batch script, and its `#SBATCH` lines: which options of sbatch a config stands for.

They are written here and not by submitit, whose import is a third of what a dry run may take
(benchmarks/login_node.py). submitit submits the text.
"""

import shlex
import sys
from collections.abc import Mapping

from llada_sft.cluster.batch import batch_script
from llada_sft.cluster.batch.options import Options, gpus_per_node
from llada_sft.config import Config
from llada_sft.config.sections.slurm import SlurmConfig
from llada_sft.run_dir import RunDir

# None = an option that the config does not give.
_Given = Mapping[str, str | int | bool | None]


def sbatch_text(config: Config, run: RunDir, python: str = sys.executable) -> str:
    """Return the batch script that `submit` hands to sbatch; one-shot options are in `extra`."""
    options_of_job = "\n".join(lines(config, run))
    body = batch_script.script(config, run, python)
    return f"#!/bin/bash\n\n# Parameters\n{options_of_job}\n\n# command\n{body}\n"


def lines(config: Config, run: RunDir) -> list[str]:
    """Return the `#SBATCH` lines, sorted by option; `slurm.extra` has options of one submission."""
    given: Options = {
        name: value
        for name, value in {**_of_config(config, run), **config.slurm.extra}.items()
        if value is not None and value is not False
    }
    return [_line(name, given[name]) for name in sorted(given)]


def _line(name: str, value: str | int | bool) -> str:
    """Write one option.

    sbatch reads quotes as a shell does, but a backslash escapes the next character within all of
    them (seen on 22.05.8).
    """
    if value is True:
        return f"#SBATCH --{name}"
    text = str(value).replace("\\", "\\\\")
    return f"#SBATCH --{name}={shlex.quote(text)}"


def _of_config(config: Config, run: RunDir) -> _Given:
    slurm = config.slurm
    return {
        "job-name": config.run.name,
        **(_per_node(slurm) if slurm.elastic is None else _of_a_range(slurm)),
        "gpus-per-node": gpus_per_node(config) or None,
        "mem": None if slurm.mem_gb_per_node is None else f"{slurm.mem_gb_per_node}G",
        "time": slurm.time_min,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "signal": f"USR2@{slurm.signal_lead_s}",
        "requeue": True,
        # stdout and stderr, in their order, across requeues; the ranks have logs of their own.
        "output": str(run.slurm / "%j_0_log.out"),
        "open-mode": "append",
    }


def _per_node(slurm: SlurmConfig) -> _Given:
    return {
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.ranks_per_node,
        "cpus-per-task": slurm.cpus_per_rank,
    }


def _of_a_range(slurm: SlurmConfig) -> _Given:
    """Ask for any number of nodes of the range, at each start of the job.

    --ntasks-per-node must not be set: SLURM converts it to the number of tasks on the nodes of the
    first attempt, and a requeued job waits forever for as many nodes (seen on 22.05.8). So only
    srun sets the tasks, and the job requests a number of CPUs of each node.
    """
    least, most = slurm.node_range[0], slurm.node_range[-1]
    return {
        "nodes": f"{least}-{most}",
        "mincpus": slurm.ranks_per_node * slurm.cpus_per_rank,
    }
