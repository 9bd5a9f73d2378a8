"""The nodes of a job are compared before anything is built, and a rank that is slow is named.

preflight.py   the check of a start, in order: facts, clocks, links; what ends the job
meeting.py     the ranks exchange small values, each wait with a limit; before the process group
facts.py       what a rank knows of its node: versions, code, GPUs, folders, free room
findings.py    facts of all ranks -> what differs, on which node, and whether that ends the job
links.py       pairs of ranks exchange data; a slow node or link is named
own_time.py    the time of a step that a rank spends by itself, which names the slowest one
"""
