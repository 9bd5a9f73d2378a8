"""Which row is next.

row.py           one line of a shard; bad_row.py: one that cannot be used
json_value.py    the text of a row -> its JSON value
position.py      how far files are read: what is done, and what waits
order.py         random orders that are worked out from a key
file_draws.py    which of a rank's files the next row comes from
shard_reader.py  the rows of one file, in such an order
stream.py        the rows of a rank's files, and a position to resume from
unindexed.py     the first rows of a file, without an index of it
count.py         how many rows there are, before anything is read
"""
