"""ONE LINE -> ONE MICRO-BATCH.

shards.py      which files there are, and which rank owns which
stream.py      the rows of a rank's files: a keyed order, and a position to go on from
hook.py        loads the user's utils/process_data.py
records.py     what the shipped hook does: prompt/response and chat records -> tokens
encode.py      what a hook returned -> checked examples, cut or skipped by a stated policy
packing.py     which examples share a micro-batch: in order, or packed by length
collate.py     examples -> tensors of one micro-batch, with the EOS tail
datamodule.py  a rank's optimizer steps, one after another, each with its position
"""
