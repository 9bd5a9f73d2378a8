"""Around the ranks, in the batch script: an attempt begins and ends.

supervisor.py     begins and ends an attempt
setup_script.py   runs the user's setup.sh
evidence.py       what an attempt left: its files, and what SLURM says of the job
verdict.py        why it ended, from that evidence
exclude_nodes.py  nodes that may be broken
"""
