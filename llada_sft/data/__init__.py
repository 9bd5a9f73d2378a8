"""ONE LINE -> ONE STEP.

shards.py   which files there are, and which rank owns which
sources.py  what `data.train` names: one dataset, or several to mix
storage/    where the bytes are: files of any kind, caches, the index of lines
rows/       which row is next: random orders, and positions to resume from
records/    what a row says: formats, conversations, tokens
examples/   what is learned of it: the hook, its checks, bad rows
steps/      examples -> micro-batches and optimizer steps
"""
