"""What is learned of a row.

hook.py        loads the user's utils/process_data.py
tokenizer.py   loads the model's tokenizer, and checks it
encode.py      what a hook returned -> checked examples, cut or skipped by a stated policy
quarantine.py  bad rows: written down, and past a limit the end of the run
row_counts.py  what became of the rows that were read
"""
