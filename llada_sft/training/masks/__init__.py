"""Options of `objective` that need more of a step than its examples and their noise.

twins.py         each example twice in its micro-batch
level_losses.py  the losses of trained steps by noise level, from which later levels are drawn
"""
