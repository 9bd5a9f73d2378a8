"""From a run directory to a SLURM job, on the login node.

submit.py                the options of sbatch, and the submission, with submitit
options.py               options of sbatch and srun in a config: how they are written
container.py             the container of the ranks
batch_script.py          what the job runs around its ranks, in bash
sbatch_environment.py    the variables that sbatch gets
"""
