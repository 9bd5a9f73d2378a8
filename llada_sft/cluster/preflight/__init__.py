"""What can be known on the login node, before a run directory is made or a job is queued.

files.py        files, folders and tokens that would end the job on its nodes
place.py        whether the run directory can be made in run.root
can_start.py    whether SLURM can ever start the job
"""
