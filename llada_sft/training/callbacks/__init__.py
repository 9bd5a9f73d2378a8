"""What happens between steps.

checkpoint_saver.py    saves checkpoints, and stops the run where the ranks agreed to
adapters_learn.py      ends a training whose adapters do not all learn
progress.py            loss, tokens per second and time left
stragglers.py          finds the rank that the others wait for
profile.py             a trace of a few steps
start_times.py         where the start spends its time
row_summary.py         what became of the rows, at the end of each epoch
signals.py             keeps the job's signals out of Lightning's hands
leave_on_exception.py  a rank leaves before Lightning cleans up after an error
"""
