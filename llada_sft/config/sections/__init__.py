"""The sections of a config: the keys of each, with their types and limits.

The schema puts them together.

data.py        the rows, and what an example is
model.py       the network, and lora
objective.py   the noise and the loss
optim.py       AdamW, and the learning rate over the steps
train.py       batches, how long, checkpoints, and what ends a training
deepspeed.py   ZeRO's own knobs
slurm.py       the job, and the numbers of nodes that divide the batch
validation.py  what is measured on held-out rows, and the names of its numbers
"""
