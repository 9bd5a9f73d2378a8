"""Kernels of other packages, which layers may compute with instead of torch's operations.

choice.py   which ones the config, the packages and the device allow
use.py      puts them into a network
liger.py    Liger's: RMSNorm, SwiGLU, rotary positions, and the cross-entropy of the head
flash.py    flash-attn's: attention of packed rows

A kernel is a function, and the parameters stay those of our modules: a checkpoint is the same with
and without, and ZeRO-3 gathers weights as before. `liger.py` and `flash.py` import their
packages: they are imported when they are chosen, and not inside `zero.Init`, which changes torch.
"""
