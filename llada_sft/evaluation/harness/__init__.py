"""The side of lm-evaluation-harness: all that imports it.

model.py      the model `llada_sft`
tasks.py      the tasks, and the requests that they make
records.py    how a score came about, and what it cannot be compared with
results.py    scores -> files
"""
