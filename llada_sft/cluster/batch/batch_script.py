"""The batch script of a job: everything around the ranks, in bash.

`BODY` is the same, character by character, in slurm/train.sbatch, which people may read and change;
a test compares the two. The launcher (`script`) or train.sbatch sets the variables that differ
before it: run_dir, python, ranks_per_node, cpus_per_rank, srun_options and rank_python.
"""

import shlex

from llada_sft.cluster.batch import container
from llada_sft.config import Config
from llada_sft.run_dir import RunDir

BODY = r"""
# A shell can pass its options on (SHELLOPTS, BASH_ENV): no error may end this script before `end`.
set +o errexit +o nounset
# The run's own copy of the code comes first; `python -m` alone would put the current folder first,
# where the working tree is.
export PYTHONPATH="$run_dir/code${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1
# This script runs on the job's first node, where rank 0 runs. A requeued job runs it again, on
# other nodes, and with a port that is free there at that time.
export MASTER_ADDR="${SLURMD_NODENAME:-$(hostname)}"
MASTER_PORT=$("$python" -m llada_sft.cluster port) || exit
export MASTER_PORT
# `begin` and `end` count the ranks with it, as libraries may.
export SLURM_NTASKS_PER_NODE="$ranks_per_node"

# TERM comes with scancel, a requeue and the time limit, and must not end this script before `end`.
# Unlike an ignored signal (''), a handler is not inherited by srun and the ranks.
trap : TERM USR2
# `begin` records the attempt, and ends the job if its restarts are used up. It sources setup.sh in
# a separate bash, and prints what setup.sh exports: only for the ranks, not for this script.
environment=$(trap '' TERM USR2 && exec "$python" -m llada_sft.cluster begin "$run_dir") || exit

# Every option is given here, so that no variable can set it. Without --immediate, srun would wait
# for ever for more CPUs than the job has. Its own messages go to a file of this attempt: they show
# which rank was killed.
set -- --jobid="$SLURM_JOB_ID" --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks="$((SLURM_JOB_NUM_NODES * ranks_per_node))" --ntasks-per-node="$ranks_per_node" \
    --cpus-per-task="$cpus_per_rank" --export=ALL --unbuffered --kill-on-bad-exit=1 \
    --immediate=600 --open-mode=append --output="$run_dir/slurm/%j_%t_log.out" \
    "${srun_options[@]}" "${rank_python[@]}" -u -m llada_sft.cluster rank "$run_dir"
set -- "$(type -P srun || echo srun)" "$@"
# The arguments are complete before setup.sh's exports can change a variable.
(eval "$environment" && exec "$@") \
    2>> "$run_dir/slurm/${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}_srun.log"
status=$?
# Inherited from here on: a requeue sends TERM to this script and to its child processes.
trap '' TERM USR2
# `end` records why the ranks ended, and requeues the job or not; its exit code is the job's.
"$python" -m llada_sft.cluster end "$run_dir" "$status"
"""


def script(config: Config, run: RunDir, python: str) -> str:
    """Return a batch script without its `#SBATCH` lines."""
    return "\n".join(
        [
            f"run_dir={shlex.quote(str(run.path))}",
            f"python={shlex.quote(python)}",
            f"ranks_per_node={config.slurm.ranks_per_node}",
            f"cpus_per_rank={config.slurm.cpus_per_rank}",
            f"srun_options=({shlex.join(container.srun_words(config, run))})",
            f"rank_python=({shlex.join(container.rank_words(config, run, python))})",
            BODY.rstrip("\n"),
        ]
    )


def step_lines(config: Config, run: RunDir, python: str) -> list[str]:
    """Return the lines that add to srun_options, and set rank_python, in slurm/train.sbatch."""
    return [
        f"srun_options+=({shlex.join(container.srun_words(config, run))})",
        f"rank_python=({shlex.join(container.rank_words(config, run, python))})",
    ]
