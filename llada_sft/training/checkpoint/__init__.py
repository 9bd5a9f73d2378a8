"""Saving, verifying and resuming.

folder.py             partial, verified, renamed; the newest complete one wins
data_state.py         data_state.json: the position of the data
manifest.py           checkpoint.json: sizes, checksums, and a checksum of its own
checksums.py          taken while a file is written, compared when it is read
shard_writer.py       a rank's shards, so that no rank waits for one whose disk is full
host_copies.py        copies of a state in host memory, for a thread that writes them
begun.py              a checkpoint that is being written: what belongs to its step
verify.py             whether a checkpoint is what was written, before it is loaded
resume.py             which checkpoint a run resumes from: all ranks together
changed_files.py      shards that changed or are gone since: refused, or restarted
half_done.py          rows that start again because what makes their examples changed
universal.py          a checkpoint for another number of ranks
universal_process.py  the process that converts it
"""
