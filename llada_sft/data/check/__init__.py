"""What `llada-sft check` reads and says: the data of a run, before any GPU is booked.

1. chunks.py     which rows are read together: all of them, the first, or a sample
2. workers.py    processes that do tasks; one that dies is one line
3. reading.py    a task: rows -> hook and tokenizer -> lengths and hashes, kept as arrays
4. epoch.py      a task: the first epoch of a rank as the training will divide it, by lengths
                 alone; or an estimate of it from a sample
5. survey.py     1 to 4 in order, and what is worked out of them (repeats.py, lengths.py)
6. findings.py   what would stop or spoil the run
7. report.py     text and JSON; rendering.py shows examples

What is counted is counted by the parts that train: the same encoder, the same `StepDataset`.
"""
