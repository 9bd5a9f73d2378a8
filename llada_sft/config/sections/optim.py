"""The section `optim`: AdamW, and the learning rate over the steps."""

from typing import Annotated, Literal

from pydantic import Field

from llada_sft.config.values import (
    Beta,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Section,
)


class OptimConfig(Section):
    # adamw = torch's; adamw_8bit = that of bitsandbytes, whose moments take one byte each instead
    # of four (docs/zero.md). Master weights and sums of gradients are fp32 in any case.
    kind: Literal["adamw", "adamw_8bit"] = "adamw"
    # The learning rate after the warm-up.
    lr: PositiveFloat = 2.5e-5
    # What it has come down to at the end of the schedule.
    final_lr: NonNegativeFloat = 2.5e-6
    # Of AdamW.
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    # Below 1e-37 it is 0 in fp32, and 0 / 0 is NaN.
    eps: Annotated[float, Field(ge=1e-37, le=1)] = 1e-8
    # Of AdamW; of matrices alone, not of gains and biases.
    weight_decay: NonNegativeFloat = 0.1
    # warmup_constant_decay: linear warm-up, constant, linear to final_lr over the last part;
    # cosine: linear warm-up, then half a cosine to final_lr.
    schedule: Literal["warmup_constant_decay", "cosine"] = "warmup_constant_decay"
    # Optimizer steps from 0 to lr.
    warmup_steps: NonNegativeInt = 50
    # The part of all steps, at the end, in which warmup_constant_decay comes down.
    decay_fraction: Fraction = 0.1
    # Largest global L2 norm of the gradient; 0 = no clipping.
    gradient_clip: NonNegativeFloat = 1.0
