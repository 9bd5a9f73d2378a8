"""The section `deepspeed`: ZeRO's own knobs."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llada_sft.config.values import (
    Elements,
    Minutes,
    PositiveInt,
    Section,
)


class DeepSpeedConfig(Section):
    """ZeRO's own knobs, by DeepSpeed's names."""

    # What the ranks divide between them (docs/zero.md): 1 = the optimizer's states; 2 = gradients,
    # too; 3 = weights, too. Keys that name stage3, leaf_blocks and those of hpZ, qwZ, qgZ and
    # offloading are for 3.
    stage: Literal[1, 2, 3] = 3
    # Keep optimizer states and gradient sums in the CPU's memory, and make the step there.
    offload_optimizer: Literal["none", "cpu"] = "none"
    # Keep the weights there, too.
    offload_param: Literal["none", "cpu"] = "none"
    # Reduce gradients while the backward pass continues.
    overlap_comm: bool = True
    # Copy gradients into one buffer before they are reduced. null = unless they would be copied as
    # they are: at stage 3, where reduce_dtype is train.precision.
    contiguous_gradients: bool | None = None
    # What gradients are sent in; they are summed over micro-batches in fp32 either way. bf16 halves
    # the traffic, and is less precise (docs/zero.md).
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    # Elements that are reduced together.
    reduce_bucket_size: Annotated[Elements, Field(ge=1)] = 200_000_000
    # Elements that are gathered ahead.
    stage3_prefetch_bucket_size: Annotated[Elements, Field(ge=0)] = 50_000_000
    # Parameters with at most so many elements stay whole on each rank.
    stage3_param_persistence_threshold: Annotated[Elements, Field(ge=0)] = 100_000
    # Elements that may be whole at a time.
    stage3_max_live_parameters: Annotated[Elements, Field(ge=1)] = 1_000_000_000
    # Gather the weights of a block at once instead of one matrix after the other: fewer hooks and
    # collectives, gradients as without ZeRO; the weights of a whole block are in memory together.
    leaf_blocks: bool = True
    # hpZ: neighbouring ranks, as many as this (those of a node), keep a second copy of the weights
    # between them; until the next step they gather that one, without traffic between nodes. It is
    # 2 bytes × parameters / this on each rank. 1 = off; the number of ranks is a multiple of it.
    zero_hpz_partition_size: PositiveInt = 1
    # Weights (qwZ) and gradients (qgZ) travel as 8-bit and 4-bit integers: less traffic, and a loss
    # of precision that is not measured. CUDA only; DeepSpeed compiles the kernels with nvcc.
    zero_quantized_weights: bool = False
    # See zero_quantized_weights.
    zero_quantized_gradients: bool = False
    # A collective that takes longer than this is an error. It is never less than the watchdog needs
    # to name a rank that hangs: train.hang_timeout_s + hang_grace_s + two minutes (null = that).
    timeout_min: Minutes | None = None

    @property
    def hooks_inside_blocks(self) -> bool:
        """Whether each module of a block gathers its own weights."""
        return self.stage == 3 and not self.leaf_blocks

    def contiguous(self, precision: Literal["bf16", "fp32"]) -> bool:
        """Return whether gradients are copied into one buffer.

        Stage 3 lays them out once more for each reduction: of gradients that need no conversion the
        buffer would be one copy too many.
        """
        if self.contiguous_gradients is not None:
            return self.contiguous_gradients
        return self.stage < 3 or self.reduce_dtype != precision

    @model_validator(mode="after")
    def _of_stage_3(self) -> "DeepSpeedConfig":
        for name in _OF_STAGE_3 if self.stage < 3 else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: needs stage: 3, got {value!r} at stage {self.stage}")
        return self


_OF_STAGE_3 = (
    "offload_optimizer",
    "offload_param",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_gradients",
)
