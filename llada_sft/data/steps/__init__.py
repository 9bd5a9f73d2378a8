"""Examples -> micro-batches and optimizer steps.

one_epoch.py   the examples of an epoch's rows, with the position of what is done
mixture.py     the examples of several sources, mixed by weight
packing.py     which examples share a micro-batch: in order, packed, or of similar length
collate.py     examples -> tensors of one micro-batch, with the EOS tail
local_step.py  one rank's part of an optimizer step, before any noise
dataset.py     a rank's optimizer steps, one after another, each with its position
prefetch.py    the same, prepared ahead by one other process
yields.py      how many steps rows make, estimated from a sample of them
"""
