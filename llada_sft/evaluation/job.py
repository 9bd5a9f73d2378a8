"""An evaluation as a SLURM job: the ranks, then the process that writes the results.

The job continues where it was, as often as it is requeued: at its time limit, by a preemption, and,
a few times, after a failure. All that it needs is in the batch script: the plan is one argument.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from llada_sft.errors import LaunchError
from llada_sft.evaluation.answer_cache import writing_results
from llada_sft.evaluation.plan import EvalPlan
from llada_sft.evaluation.settings import JobSection

SUBMIT_TIMEOUT_S = 60
# Seconds before the time limit at which the job is requeued.
_LEAD_S = 120
# Options of another job, or of the tools, in the shell that submits; those that name the cluster
# stay.
_OF_SLURM = re.compile(r"(?:SLURM|SBATCH|SRUN|SLURMD)_")
_REACH_SLURM = frozenset({"SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})

_BODY = r"""
# At the time limit: what was answered is on the disk already.
requeue() {
    trap '' USR2 TERM
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR2
export PYTHONUNBUFFERED=1
# The ranks do not wait for each other: if one fails, the others finish their shares.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * ranks_per_node))" \
    --ntasks-per-node="$ranks_per_node" --cpus-per-task="$cpus_per_rank" --export=ALL \
    --kill-on-bad-exit=0 "$python" -m llada_sft.evaluation rank "$plan" &
wait $!
status=$?
if [ "$status" -eq 0 ]; then
    # In the background, too: a trap waits for a command in the foreground.
    "$python" -m llada_sft.evaluation finish "$plan" &
    wait $!
    status=$?
fi
# 2 is a mistake of the user's. After scancel, a preemption or the loss of a node, SLURM decides.
[ "$status" -eq 0 ] || [ "$status" -eq 2 ] && exit "$status"
scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q " JobState=RUNNING " || exit "$status"
failures=$(cat "$count" 2> /dev/null || echo 0)
[ "$failures" -lt "$max_failures" ] || exit "$status"
echo $((failures + 1)) > "$count"
echo "failed with exit code $status: requeued, failure $((failures + 1)) of $max_failures"
requeue
"""


def batch_script(plan: EvalPlan, python: str = sys.executable) -> str:
    """Return the whole batch script of an evaluation."""
    slurm = plan.config.slurm
    logs = plan.results / "slurm"
    setup = [] if slurm.setup is None else [f"source {shlex.quote(slurm.setup)} || exit"]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{option}" for option in _options(slurm)),
            *setup,
            f"python={shlex.quote(python)}",
            f"plan={shlex.quote(plan.to_json())}",
            f'count={shlex.quote(str(logs))}"/$SLURM_JOB_ID.failures"',
            f"ranks_per_node={slurm.ranks_per_node}",
            f"cpus_per_rank={slurm.cpus_per_rank}",
            f"max_failures={slurm.max_failures}",
            _BODY.strip("\n"),
            "",
        ]
    )


def require_sbatch_command() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        LaunchError: It has no SLURM.
    """
    if shutil.which("sbatch") is None:
        raise LaunchError("sbatch not found: this machine has no SLURM; leave --slurm away")


def submit_evaluation(plan: EvalPlan) -> str:
    """Submit an evaluation; return what to tell the user.

    Raises:
        LaunchError: sbatch refuses the job.
        ConfigError: The folder of its log cannot be made.
    """
    logs = plan.results / "slurm"
    with writing_results(logs):
        logs.mkdir(parents=True, exist_ok=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _REACH_SLURM or not _OF_SLURM.match(name)
    }
    # The path may have characters that mean something in a file's pattern, or on an #SBATCH line.
    command = ["sbatch", "--parsable", f"--output={logs}/%j.log", f"--chdir={Path.cwd()}"]
    try:
        done = subprocess.run(
            command,
            input=batch_script(plan),
            env=environment,
            capture_output=True,
            text=True,
            timeout=SUBMIT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"sbatch: no answer in {SUBMIT_TIMEOUT_S} s: look for the job with  squeue --me"
        ) from None
    if done.returncode:
        raise LaunchError(f"sbatch refused the job: {' '.join(done.stderr.split())}")
    job_id = done.stdout.strip().partition(";")[0]
    return f"submitted job {job_id}; its log: {logs}/{job_id}.log"


def _options(slurm: JobSection) -> list[str]:
    gpus = slurm.ranks_per_node if slurm.gpus_per_node is None else slurm.gpus_per_node
    memory = slurm.mem_gb_per_node
    values = {
        "job-name": "llada-sft-eval",
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.ranks_per_node,
        "cpus-per-task": slurm.cpus_per_rank,
        "gpus-per-node": gpus or None,
        "mem": None if memory is None else f"{memory}G",
        "time": slurm.time_min,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "signal": f"B:USR2@{_LEAD_S}",
        "open-mode": "append",
    }
    given = [f"{name}={value}" for name, value in values.items() if value is not None]
    return [*given, "requeue"]
