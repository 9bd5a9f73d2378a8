"""ONE LINE -> ONE MICRO-BATCH.

shards.py      which files there are, and which rank owns which
sources.py     what `data.train` names: one dataset, or several to mix
draws.py       which of a rank's files the next row comes from
order.py       random orders that are worked out from a key
file_reader.py the rows of one file, in such an order
stream.py      the rows of a rank's files, and a position to go on from
detect.py      the format of a dataset, told from its first rows
formats.py     a record of any known format -> a conversation, or plain text
turns.py       which answers of a conversation are learned
record_reader.py  what a hook gets: formats.py and turns.py by the config and the epoch
hook.py        loads the user's utils/process_data.py
records.py     what the shipped hook does: a conversation, or plain text -> tokens
encode.py      what a hook returned -> checked examples, cut or skipped by a stated policy
quarantine.py  bad rows: written down, and past a limit the end of the run
counts.py      what became of the rows that were read
packing.py     which examples share a micro-batch: in order, or packed by length
collate.py     examples -> tensors of one micro-batch, with the EOS tail
epoch_rows.py  the examples of an epoch's rows, with the position of what is done
mixture.py     the examples of several sources, mixed by weight
sharding/      makes shards of all kinds of files; no part of a run
datamodule.py  a rank's optimizer steps, one after another, each with its position
background.py  the same, prepared ahead by one other process
validation.py  the validation rows of a rank
row_count.py   how many rows there are, before anything is read
yields.py      how many steps rows make, estimated from a sample of them
cache.py       indexes, texts and fetched objects, outside the data's folder
files.py       what a shard may be; line_index.py: where its lines begin
"""
