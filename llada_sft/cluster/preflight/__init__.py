"""What can be known on the login node, before a run directory is made or a job is queued.

files.py        files, folders and tokens that would end the job on its nodes
place.py        whether the run directory can be made in run.root
submission.py   all of the following, for a job that is about to be submitted
storage.py      room for the checkpoints, and files that other nodes cannot see; mounts.py: where
                a path is mounted
hook_trial.py   the hook on the first rows
partitions.py   SLURM's partitions and nodes, compared with what the job asks for
can_start.py    whether SLURM can ever start the job
"""
