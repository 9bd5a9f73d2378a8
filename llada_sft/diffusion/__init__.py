"""The mathematics of masked diffusion: tensors and numbers, nothing of configs, files or ranks.

noise.py       which tokens are masked, and the weight of each
blocks.py      the noise of blocks, and the biased recipe of one level for all
levels.py      how often each noise level is drawn
grid.py        the masks of a validation, spread over rows and draws
objective.py   the training loss
likelihood.py  bounds on the likelihood
strata.py      the masks that a likelihood is averaged over, and its standard error
generate.py    the sampler
"""
