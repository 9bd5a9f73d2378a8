"""What a config needs, before anything is launched: `launch.py --plan`.

setup.py     a config with its network
memory.py    the bytes of tensors on a rank
cost.py      traffic and time of a step, bytes of a checkpoint
fitting.py   the largest micro-batch and the fewest nodes that memory has room for
report.py    the lines that are printed

Nothing here imports torch. All of it is arithmetic; what was measured of it is said where it is.
"""
