"""Ownership of a run directory: one process or job owns it at a time.

identity.py     an owner: the process or the job
liveness.py     whether an owner is dead
owner_files.py  `owner.1`, `owner.2`, …: the highest number is the owner
owner_sight.py  what can be seen of an owner
claim.py        claims a run directory
ownership.py    keeps it, hands it over and releases it
fence.py        checks before each write that this process still owns it
"""
