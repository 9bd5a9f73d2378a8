"""What noise makes of a micro-batch, and options of `objective` and `data.end` that need more.

noisy_batch.py   noise applied to a micro-batch: micro_batch.py, what the network and the loss need
parts.py         what a draw masks: an example, or a block of one
two_halves.py    noisy and clean tokens next to each other, for blocks
edits.py         wrong tokens among those that are not masked
twins.py         each example twice in its micro-batch
void_end.py      an EOS and void tokens that are always masked
level_losses.py  the losses of trained steps by noise level, from which later levels are drawn
"""
