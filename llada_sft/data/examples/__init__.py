"""What is learned of a row.

hook.py        loads the user's utils/process_data.py
tokenizer.py   loads the model's tokenizer, and checks it
parse.py       a row -> its JSON value, or why it has none
encode.py      a row -> the examples that its hook makes, cut or skipped by a stated policy
answer_end.py  what follows an answer: EOS, void or rainbow tokens
pieces.py      a long document -> pieces of it
hook_output.py what a hook may return
quarantine.py  bad rows: written down, and past a limit the end of the run
row_counts.py  what became of the rows that were read
"""
