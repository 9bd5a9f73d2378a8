"""The mathematics of masked diffusion: tensors and numbers, nothing of configs, files or ranks."""
