"""What `llada-sft resume RUN` may change of a run, and what must fit.

changing.py     the changes: all of them, or none
update_code.py  the run's code is replaced; code_diff.py: what that changes
old_version.py  the config of the run as the version that launched it reads it
fitting.py      whether data and model fit the checkpoint
"""
