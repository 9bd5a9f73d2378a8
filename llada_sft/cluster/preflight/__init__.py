"""What can be known on the login node, before a run directory is made or a job is queued.

files.py        files, folders and tokens that would end the job on its nodes
place.py        whether the run directory can be made in run.root
partitions.py   SLURM's partitions and nodes, compared with what the job asks for
can_start.py    whether SLURM can ever start the job
"""
