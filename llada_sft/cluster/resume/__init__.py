"""What `llada-sft resume RUN` may change in a run, and what must fit.

changing.py     the changes: all of them, or none
update_code.py  replaces the run's code; code_diff.py: the differences
old_version.py  the config of a run as the version that launched it reads it
fitting.py      whether data and model fit the checkpoint
"""
