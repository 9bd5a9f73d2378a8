"""From a run directory to a SLURM job, on the login node.

submit.py                hands the batch script to sbatch, with submitit
directives.py            the batch script, and its #SBATCH lines
options.py               options of sbatch and srun in a config: how they are written
refused.py               options of both that a config must not give
container.py             the container of the ranks
batch_script.py          what the job runs around its ranks, in bash
sbatch_environment.py    the variables that sbatch gets
"""
