"""Commands that show a run.

find_run.py     from a path or a name to a run directory
summary.py      what a run is doing, as values
progress.py     how far it is; starting.py: what its ranks do before their first step
checkpoints.py  its checkpoints, by their names
pending.py      why its job is pending, in plain words
status.py       one run in a few lines; all_runs.py: all runs, a line each
sweep_table.py  the runs of a sweep
json_status.py  both for machines
logs.py         a rank's log, also while it grows
following.py    what else is shown then: changes of the job's state, and a live line
ending.py       how a job ended: its exit code, and a few lines
"""
