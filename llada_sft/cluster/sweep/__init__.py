"""`--sweep`: many runs of one config, each with its own values.

grid.py            the values, names and configs of the runs
launch_sweep.py    a job for each run, or one after another on this machine
sweep_file.py      sweep.json: the runs of a sweep, and their values
"""
