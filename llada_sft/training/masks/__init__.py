"""Options of `objective` and `data.end` that need more of a step than its examples and their noise.

twins.py         each example twice in its micro-batch
void_end.py      an EOS and void tokens that are always masked
level_losses.py  the losses of trained steps by noise level, from which later levels are drawn
"""
