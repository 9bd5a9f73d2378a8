"""What runs on each rank; it knows neither launch/ nor attempt/.

main.py            from SLURM's variables to the training
lean_imports.py    leaves out what the libraries import for nothing
signals.py         a signal sets a flag
stopping.py        why SLURM signalled, and whether rank 0 requeues the job
phases.py          what each rank does until its first step
log_sections.py    the part of a rank's log that is of one attempt
journal_writer.py  what rank 0 writes into the journal
abort.py           how a rank that failed exits; shown.py: where it says why
watchdog.py        ends a rank that makes no progress; stacks.py: where each rank was
"""
