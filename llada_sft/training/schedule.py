"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from llada_sft.config.schema import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step.

    Linear warm-up from 0, then constant and linear to `final_lr` over the last `decay_fraction`
    of all steps (LLaDA's), or half a cosine. Past `total_steps` it stays at `final_lr`.

    Args:
        config: The optim section.
        step: The step about to be made, from 0.
        total_steps: Steps of the whole training.

    Source: arXiv 2502.09992, appendix B.2 (SFT).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        start = config.warmup_steps
        descent = 0.5 * (1 + math.cos(math.pi * _progress(step, start, total_steps)))
        return config.final_lr + (config.lr - config.final_lr) * descent
    start = max(config.warmup_steps, math.ceil(total_steps * (1 - config.decay_fraction)))
    return config.lr + (config.final_lr - config.lr) * _progress(step, start, total_steps)


def _progress(step: int, start: int, end: int) -> float:
    """How far a step is from start (0) to the last step before end (1)."""
    return min(1.0, max(0.0, (step - start + 1) / max(1, end - start)))
