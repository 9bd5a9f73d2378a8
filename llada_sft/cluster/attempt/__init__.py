"""Around the ranks, in the batch script or a launcher: an attempt starts and ends.

supervisor.py     starts and ends an attempt
setup_script.py   runs the user's setup.sh
evidence.py       what an attempt left: its files, and what SLURM says of the job
verdict.py        why it ended, from that evidence
requeue.py         the requeue that rank 0 could not make
exclude_nodes.py  nodes that may be broken
by_hand.py        the same for ranks that srun or torchrun starts without any of these
"""
