"""Fine-tune LLaDA (masked diffusion language models) with ZeRO-3 on a SLURM cluster.

config/     what a run is
data/       one line of a shard -> one step
check/      `llada-sft check`; sharding/: `llada-sft shard`
diffusion/  the mathematics
model/      the network
generation/ the samplers: prompts -> answers; answering/: `llada-sft sample`, `llada-sft chat`
evaluation/ likelihoods, and the tasks of lm-evaluation-harness
training/   the loop
plan/       what a config takes: memory, traffic, time, disk
cluster/    the job
report/     the HTML page of a run
demo/       the embedded default
commands/   commands without a room of their own

cli.py        `llada-sft`, by __main__.py as well; entry.py: how commands end
run_dir.py    the paths in a run directory; paths.py: those that a command is given
placement.py  which rank this is; local_ranks.py: of processes that exchange nothing
choices.py    samplers and estimators that are chosen by name
errors.py     what a user can fix; versions.py: of Python and of packages
keys.py       keys of random choices, and digests
atomic.py     files that are replaced at once; processes.py: other processes, and a pipe to each
"""

__version__ = "0.1.0"
