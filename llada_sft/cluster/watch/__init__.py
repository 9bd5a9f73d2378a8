"""Commands that show a run.

status.py  what a run is doing
sweep_table.py  the runs of a sweep
logs.py    a rank's log, also while it grows
ending.py  how a job ended: its exit code, and a few lines
"""
