"""Numbers of a run, and what its training records.

loggers.py           those that a config asks for
log_interval.py      the numbers of the log that cover several steps
signals.py           what the losses say: by noise level, their variance, the share of EOS
efficiency.py        what part of a GPU's rate the training reaches, and peak memory
metrics_csv.py       the log of a run, continued by every attempt
metrics_rows.py      its rows, read without torch
wandb_log.py         the same for Weights & Biases, which can neither end nor delay a training
answers_log.py       answers to held-out prompts
tensorboard.py       the curves of TensorBoard
step_journal.py      what the training writes to the journal
library_warnings.py  warnings of libraries that say nothing about a run
"""
