"""From a run directory to a SLURM job, on the login node.

submit.py                the batch script, and its submission with submitit
directives.py            its #SBATCH lines
options.py               options of sbatch and srun in a config: how they are written
container.py             the container of the ranks
batch_script.py          what the job runs around its ranks, in bash
sbatch_environment.py    the variables that sbatch gets
"""
