"""What `llada-sft check` reads and says: the data of a run, before any GPU is booked.

    command.py     the command: read, judge, print
    chunks.py      which rows are read together: all of them, the first, or a sample
    workers.py     processes that do tasks; one that dies is one line
    reading.py     a task: rows -> hook and tokenizer -> lengths and hashes, kept as arrays
    epoch_plan.py  a task: the first epoch of a rank as the training will divide it, by lengths
                   alone; or an estimate of it from a sample
    survey.py      all of these in order, and what is worked out of them
    duplicates.py  rows that are there twice; lengths.py: how long prompts and responses are
    findings.py    what would stop or spoil the run
    report.py      text and JSON; rendering.py shows examples

What is counted is counted by the parts that train: the same encoder, the same `StepDataset`.
"""
