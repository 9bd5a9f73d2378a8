"""Where the bytes of a shard are.

files.py       what a shard may be: local or remote; plain, gzip or zstd
line_index.py  where the rows of a text start, and a fingerprint
cache.py       indexes, texts and fetched objects, outside the data's folder
"""
