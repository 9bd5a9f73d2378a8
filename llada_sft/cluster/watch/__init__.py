"""Commands that show a run.

status.py  what a run is doing
logs.py    a rank's log, also while it grows
ending.py  how a job ended: its exit code, and a few lines
"""
