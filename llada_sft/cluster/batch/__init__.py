"""From a run directory to a SLURM job, on the login node.

submit.py                the options of sbatch, and the submission, with submitit
batch_script.py          what the job runs around its ranks, in bash
sbatch_environment.py    the variables that sbatch gets
"""
