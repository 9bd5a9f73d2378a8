"""ONE LINE -> ONE MICRO-BATCH.

shards.py      which files there are, and which rank owns which
draws.py       which of a rank's files the next row comes from
stream.py      the rows of a rank's files: a keyed order, and a position to go on from
hook.py        loads the user's utils/process_data.py
records.py     what the shipped hook does: prompt/response and chat records -> tokens
encode.py      what a hook returned -> checked examples, cut or skipped by a stated policy
quarantine.py  bad rows: written down, and past a limit the end of the run
counts.py      what became of the rows that were read
packing.py     which examples share a micro-batch: in order, or packed by length
collate.py     examples -> tensors of one micro-batch, with the EOS tail
epoch_rows.py  the examples of an epoch's rows, with the position of what is done
sharding/      makes shards of all kinds of files; no part of a run
datamodule.py  a rank's optimizer steps, one after another, each with its position
"""
