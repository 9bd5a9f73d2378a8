"""Validation: the same rows with the same masks each time, on any ranks.

rows.py      the rows of a set, known to all ranks
batches.py   these rows as masked micro-batches, dealt to the ranks
results.py   the numbers of a set
answers.py   held-out prompts that are answered
build.py     the config -> the callback
best.py      the best validation so far: which checkpoint is kept, when a training ends early
callback.py  when a run validates
"""
